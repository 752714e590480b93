"""Shards whose files are in any order or have unusual names: they are read, or the message names the cause."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clipkit.data import check, fix, read_labeled, read_pairs
from clipkit.data.sources.streams import stream_of
from clipkit.errors import DataError
from clipkit.images import open_image

Files = Sequence[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


def encoded(value: int, format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(content, format)
    return content.getvalue()


def write(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(names: str = "{:03d}", count: int = 6) -> Files:
    files = []
    for number in range(count):
        name = names.format(number)
        files += [(f"{name}.png", encoded(40 * number)), (f"{name}.txt", f"caption {number}".encode())]
    return files


def values(source: object) -> list[tuple[int, str]]:
    """Return the gray value of each image with its caption."""
    pairs = read_pairs(str(source))
    grays = [int(np.asarray(open_image(image))[0, 0, 0]) for image in pairs.images]
    return [(grays[image], text) for image, text in zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True)]


EXPECTED = [(40 * number, f"caption {number}") for number in range(6)]
ORDERS = {
    "images first": lambda files: sorted(files, key=lambda file: file[0][-3:]),
    "texts first": lambda files: sorted(files, key=lambda file: file[0][-3:], reverse=True),
    "shuffled": lambda files: [files[row] for row in np.random.default_rng(0).permutation(len(files))],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_files_of_a_sample_may_be_anywhere_in_a_local_shard(order: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", ORDERS[order](list(samples())))
    assert sorted(values(path)) == EXPECTED
    pairs = read_pairs(str(path))
    assert fix(pairs, check(pairs, batch_size=2), tmp_path / "out")["captions"] == 6


@pytest.mark.parametrize("order", ORDERS)
def test_a_stream_names_the_order_as_the_cause(order: str, tmp_path: Path) -> None:
    write(tmp_path / "s.tar", ORDERS[order](list(samples())))
    stream = stream_of(f"{tmp_path}/s.tar?stream=true")
    assert stream is not None
    with pytest.raises(DataError, match="sort the files.*follow each other"):
        list(stream.samples(stream.parts[0]))


def test_a_name_that_occurs_again_is_another_sample(tmp_path: Path) -> None:
    other = [(name, content.replace(b"caption", b"another")) for name, content in samples()]
    path = write(tmp_path / "s.tar", [*samples(), *other])
    assert values(path) == EXPECTED + [(gray, text.replace("caption", "another")) for gray, text in EXPECTED]


@pytest.mark.parametrize(
    "names", ["photo.{:03d}", "2024.01.{:02d}-x", "{:03d}.v1", "dir.x/a{:03d}.final", "photo.{:03d}.copy"]
)
def test_dots_in_names_are_named_as_the_cause(names: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", samples(names))
    for broken in ((), ("images", "captions")):
        with pytest.raises(DataError, match=r"second dot, e\.g\. .*first dot.*rename"):
            read_pairs(str(path), broken=broken)


def test_half_of_the_names_with_dots_and_a_few(tmp_path: Path) -> None:
    half = write(tmp_path / "half.tar", [*samples(count=5), *samples("b.{:03d}", 5)])
    with pytest.raises(DataError, match="have a second dot"):
        read_pairs(str(half), broken=("images", "captions"))
    few = write(tmp_path / "few.tar", [*samples(count=120), *samples("b.x{:03d}", 1)])
    assert len(read_pairs(str(few), broken=("images", "captions")).images) == 121


def test_dots_in_folders_and_additional_files_are_no_problem(tmp_path: Path) -> None:
    files = [
        *samples("v1.0/set.a/{:03d}"),
        *((f"v1.0/set.a/{number:03d}.seg.png", encoded(9)) for number in range(6)),
        ("v1.0/README.md", b"about"),
        ("v1.0/._000.png", b"mac"),
    ]
    pairs = read_pairs(str(write(tmp_path / "s.tar", files)), broken=("images", "captions"))
    assert [text for text in pairs.captions if text] == [text for _, text in EXPECTED]


def test_images_and_captions_with_other_names_are_named(tmp_path: Path) -> None:
    files = [(name if name.endswith("png") else f"captions/{name}", content) for name, content in samples()]
    path = write(tmp_path / "s.tar", files)
    with pytest.raises(DataError, match=r"no sample has both .*000\.png.*captions/000"):
        read_pairs(str(path), broken=("images", "captions"))


def test_the_image_of_a_sample_does_not_depend_on_the_order(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        image, mask = (f"{number}.jpg", encoded(200, "JPEG")), (f"{number}.png", encoded(0))
        files += [*([image, mask] if number % 2 else [mask, image]), (f"{number}.txt", b"a dog")]
    path = write(tmp_path / "s.tar", files)
    pairs = read_pairs(str(path))
    assert [image.name for image in pairs.images] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [finding.message for finding in pairs.findings] == [
        f"{path}: the image of a sample is its file .jpg, not .png"
    ]
    assert [gray for gray, _ in values(f"{path}?image=png")] == [0, 0, 0, 0]
    assert not read_pairs(f"{path}?image=png").findings


def test_options_name_endings_and_keys(tmp_path: Path) -> None:
    files: list[tuple[str, bytes]] = []
    for number in range(3):
        row = {"caption": "the wrong one", "alt": f"alt {number}", "class_name": f"c{number}"}
        files += [
            (f"{number}.left.png", encoded(40 * number)),
            (f"{number}.png", encoded(255)),
            (f"{number}.txt", b"the wrong one"),
            (f"{number}.long", f"long {number}".encode()),
            (f"{number}.json", json.dumps(row).encode()),
        ]
    path = write(tmp_path / "s.tar", files)
    assert values(f"{path}?image=left.png&caption=alt") == [(40 * number, f"alt {number}") for number in range(3)]
    assert values(f"{path}?image=left.png&caption=long") == [(40 * number, f"long {number}") for number in range(3)]
    assert read_labeled(f"{path}?label=class_name").classes == ["c0", "c1", "c2"]
    for option in ("caption=title", "image=webp", "label=title"):
        with pytest.raises(DataError, match=option.partition("=")[2]):
            (read_labeled if "label" in option else read_pairs)(f"{path}?{option}")
    assert {text for _, text in values(path)} == {"the wrong one"}


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"caption": "a dog"}, None),  # the same caption twice, as img2dataset writes it
        ({"caption": "Rex", "url": "x"}, "the caption of a sample is its file or JSON key txt, not caption"),
        ({"title": ["a dog"], "text": ["Rex", "a cat"]}, "its file or JSON key txt, not text"),
    ],
)
def test_other_captions_of_the_samples_are_reported(row: dict[str, object], note: str | None, tmp_path: Path) -> None:
    files = [("1.png", encoded(0)), ("1.txt", b"a dog"), ("1.json", json.dumps(row).encode())]
    path = write(tmp_path / "s.tar", files)
    for _ in range(2):  # the second time from the index that was kept
        pairs = read_pairs(str(path))
        assert list(pairs.captions) == ["a dog"]
        assert [finding.message.endswith(note or "?") for finding in pairs.findings] == [True] * (note is not None)


def test_a_folder_of_shards_as_img2dataset_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for shard in range(2):
        numbered = [(f"{shard}{name}", content) for name, content in samples(count=3)]
        write(folder / f"0000{shard}.tar", numbered)
        table = pa.table({"url": ["http://127.0.0.1:9/1.jpg"], "caption": ["not this"]})
        parquet.write_table(table, folder / f"0000{shard}.parquet")
        (folder / f"0000{shard}_stats.json").write_text("{}")
    assert values(folder) == EXPECTED[:3] * 2
    (left_out,) = read_pairs(str(folder)).findings
    assert (left_out.name, left_out.count) == ("left_out", 4)
    assert "00000.parquet" in left_out.message


def test_a_folder_of_shards_of_several_splits(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    write(folder / "train-0.tar", samples(count=3))
    write(folder / "val-0.tar", samples(count=2))
    with pytest.raises(DataError, match=r"several splits.*\?split=train.*\?split=val"):
        read_pairs(str(folder))
    assert values(f"{folder}?split=val") == EXPECTED[:2]
