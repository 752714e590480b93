"""Content of an index, and no image is encoded twice: on resuming, on updating, and over processes."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.errors import DataError, OutputError
from clipkit.images import open_image
from clipkit.models import DualEncoder
from clipkit.search import Index, embed, writing
from clipkit.search.log import Encoded, EncodedLog
from tests.conftest import draw, write_csv


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_features_and_columns_are_those_of_the_data(index_folder: Path, table: Path, model: DualEncoder) -> None:
    index = Index(index_folder, check=True)
    paths = [table.parent / name for name in index.rows["image"].to_pylist()]
    features = model.encode_image(paths)
    most = index.manifest["features"]["max_error"]
    assert np.abs(index.features.astype(np.float32) - features.numpy()).max() <= most + 1e-6
    assert most < 3e-4
    assert index.rows["captions"].to_pylist()[0] == ["a red square", "the square is red"]
    assert index.rows["year"].to_pylist()[:5] == [2010, 2011, 2012, None, 2014]
    texts = torch.from_numpy(index.text_features.astype(np.float32))
    torch.testing.assert_close(texts, model.encode_text(index.texts), atol=3e-4, rtol=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of 12 images without captions."""
    (tmp_path / "images").mkdir()
    for number in range(12):
        draw("red", "square", size=24 + number).save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path / "images"


class Killed(BaseException):
    pass


def dying_after(monkeypatch: pytest.MonkeyPatch, encodings: int, encoded: list[str]) -> None:
    """Make encoding die after some calls; note the images of the calls that were completed."""
    encode = writing.encode_images
    left = [encodings]

    def dying(tower: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        features = encode(tower, images, *arguments, **options)
        encoded.extend(image.name for image in images)
        return features

    monkeypatch.setattr(writing, "encode_images", dying)


def test_an_interrupted_embedding_encodes_no_image_twice_and_ends_with_the_same_bytes(
    folder: Path, model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_RECORD", 4)
    embed(str(folder), model, tmp_path / "whole")
    encoded: list[str] = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            dying_after(patch, 1, encoded)
            with pytest.raises(Killed):
                embed(str(folder), model, tmp_path / "killed")
    with pytest.raises(DataError, match="unfinished"):
        Index(tmp_path / "killed")
    with (next((tmp_path / "killed" / "unfinished").glob("image-*.log"))).open("ab") as file:
        file.write(b"\x63\x6c\x69\x70 the beginning of a record")
    dying_after(monkeypatch, 100, encoded)
    made = embed(str(folder), model, tmp_path / "killed")
    assert sorted(encoded) == [f"{number:02d}.png" for number in range(12)]
    assert made.encoded_images == 4
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_only_new_content_is_encoded_again(folder: Path, model: DualEncoder, tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert embed(str(folder), model, out).encoded_images == 12
    before = content(out)
    assert embed(str(folder), model, out).encoded_images == 0
    assert content(out) == before
    (folder / "00.png").rename(folder / "renamed.png")
    (folder / "01.png").unlink()
    draw("blue", "circle").save(folder / "02.png")
    draw("green", "cross").save(folder / "new.png")
    made = embed(str(folder), model, out)
    assert (made.images, made.encoded_images, made.removed) == (12, 2, 2)
    index = Index(out, check=True)
    paths = [folder / name for name in index.rows["image"].to_pylist()]
    assert np.abs(index.features.astype(np.float32) - model.encode_image(paths).numpy()).max() < 3e-4
    assert len(list(out.iterdir())) == 3  # manifest, rows, features: the old files are gone


def test_a_full_disk_is_one_line_and_the_index_stays(
    folder: Path, model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    embed(str(folder), model, out)
    before = content(out)
    draw("red", "circle", shift=9).save(folder / "new.png")

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipkit.search.assembly.write_array", full)
    with pytest.raises(OutputError, match="No space left on device"):
        embed(str(folder), model, out)
    monkeypatch.undo()
    assert embed(str(folder), model, out).encoded_images == 0
    assert content(out) != before


def test_unreadable_images_are_listed_and_left_out(folder: Path, model: DualEncoder, tmp_path: Path) -> None:
    (folder / "03.png").write_bytes(b"no image")
    made = embed(str(folder), model, tmp_path / "index")
    assert (made.images, [entry["image"] for entry in made.skipped]) == (11, ["03.png"])
    assert "03.png" not in Index(tmp_path / "index").rows["image"].to_pylist()


def test_missing_images_are_skipped_but_not_all(model: DualEncoder, tmp_path: Path) -> None:
    draw("red", "square").save(tmp_path / "there.png")
    table = write_csv(tmp_path / "t.csv", ["image", "caption"], [["there.png", "a"], ["gone.png", "b"]])
    assert [entry["image"] for entry in embed(str(table), model, tmp_path / "index").skipped] == ["gone.png"]
    (tmp_path / "there.png").unlink()
    with pytest.raises(DataError, match="none of the images"):
        embed(str(table), model, tmp_path / "other")


def test_a_stream_gives_the_index_of_its_shards(folder: Path, model: DualEncoder, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for image in sorted(folder.iterdir())[:5]:
            for name, data in ((image.name, image.read_bytes()), (f"{image.stem}.txt", f"shape {image.stem}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    streamed = embed(f"{tmp_path / 's.tar'}?stream=true", model, tmp_path / "stream")
    read = embed(str(tmp_path / "s.tar"), model, tmp_path / "read")
    assert streamed.images == read.images == 5
    assert streamed.captions == 5
    first, second = Index(tmp_path / "stream"), Index(tmp_path / "read")
    assert (np.asarray(first.features) == np.asarray(second.features)).all()
    assert first.rows["captions"].to_pylist() == second.rows["captions"].to_pylist()
    with pytest.raises(DataError, match="stream"):
        first.image(0)
    assert second.image(0).tobytes() == open_image(folder / "00.png").tobytes()


def test_another_model_and_other_folders_are_refused(
    folder: Path, model: DualEncoder, tmp_path: Path, index_folder: Path
) -> None:
    copy = shutil.copytree(index_folder, tmp_path / "copy")
    with torch.no_grad():
        model.image.head.weight.mul_(-1)
    try:
        with pytest.raises(DataError, match="another model"):
            embed(str(folder), model, copy)
        with pytest.raises(DataError, match="another model"):
            Index(copy, model=model).search(images=[Image.new("RGB", (8, 8))])
    finally:
        with torch.no_grad():
            model.image.head.weight.mul_(-1)
    with pytest.raises(OutputError, match="not an index"):
        embed(str(folder), model, folder)
    assert min(folder.iterdir()).name == "00.png"


def test_a_damaged_record_and_all_after_it_are_ignored(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    keys = [bytes([number]) * 32 for number in range(6)]
    features = generator.standard_normal((6, 8)).astype(np.float32)
    with EncodedLog(tmp_path, "image") as log:
        log.add(keys[:2], features[:2])
        log.add(keys[2:4], features[2:4])
        log.add(keys[4:], features[4:])
    file = next(tmp_path.iterdir())
    whole = Encoded(tmp_path, "image")
    assert list(whole.rows) == keys
    assert (whole[keys[3]] == features[3].astype(np.float16)).all()
    assert whole.error == np.abs(features.astype(np.float16) - features).max()
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    assert list(Encoded(tmp_path, "image").rows) == keys[:2]
