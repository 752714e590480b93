"""Preparing data: the same images and captions come back, whatever interrupts the work."""

import hashlib
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit.cli import main
from clipkit.data import Pairs, prepare, read_for_shards, read_pairs
from clipkit.data.encoded import Encoded, encoded
from clipkit.data.shards import Format
from clipkit.errors import DataError, OutputError, UserError
from clipkit.images import open_image
from tests.conftest import draw, read_lines, write_csv

MODULE = sys.modules[prepare.__module__]  # the package's function of this name hides the module
FORMATS: list[Format] = ["tar", "parquet"]
Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Type:
    """Run the command in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipkit", "data", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def captions_by_image(pairs: Pairs) -> list[list[str]]:
    return [[pairs.captions[row] for row in rows] for rows in pairs.captions_of_image]


def is_complete(folder: Path) -> bool:
    return bool(json.loads((folder / "prepared.json").read_text())["complete"])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, observe: Callable[[], None] = lambda: None) -> list[Path]:
    """Replace the encoder by one that raises KeyboardInterrupt after some images; return the list of its images."""
    images: list[Path] = []

    def encode(*arguments: Any) -> Encoded:
        images.append(arguments[0])
        observe()
        if len(images) > after:
            raise KeyboardInterrupt
        return encoded(*arguments)

    monkeypatch.setattr(MODULE, "encoded", encode)
    return images


@pytest.mark.parametrize("format", FORMATS)
def test_same_images_and_captions_come_back_in_order(source: Path, tmp_path: Path, format: Format) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    made = prepare(pairs, out, size=24, lossless=True, format=format, shard_size=4)
    assert made.pattern == str(out / {"tar": "shards-{000000..000002}.tar", "parquet": "*.parquet"}[format])
    assert (made.images, made.shards, made.skipped) == (11, 3, [])
    back = read_pairs(made.pattern)
    assert captions_by_image(back) == captions_by_image(pairs)
    for before, after in zip(pairs.images, back.images, strict=True):
        large, small = open_image(before), open_image(after)
        short, long = sorted(large.size)
        assert sorted(small.size) == [24, int(24 * long / short)]
        assert np.array_equal(small, large.resize(small.size, Image.Resampling.BICUBIC))
    assert made.source_bytes == sum(Path(str(image)).stat().st_size for image in pairs.images)
    shards = json.loads((out / "prepared.json").read_text())["shards"]
    assert made.bytes == sum(shard["bytes"] for shard in shards)
    for shard in shards:
        content = (out / shard["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])


def test_layout_of_tars(source: Path, tmp_path: Path) -> None:
    prepare(read_pairs(str(source)), tmp_path / "out", size=24, shard_size=11)
    with tarfile.open(tmp_path / "out" / "shards-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:3]] == ["000000.jpg", "000000.json", "000001.jpg"]
        assert {(file.mtime, file.uid, file.gid, file.uname, file.mode) for file in members} == {(0, 0, 0, "", 0o644)}
        texts = json.load(tar.extractfile("000001.json"))  # type: ignore[arg-type]
    assert texts == {"caption": ["caption 0 of 9, “é”"], "name": "09.png"}


@pytest.mark.parametrize("format", FORMATS)
def test_negative_captions_and_paraphrases_are_kept(shapes: Path, tmp_path: Path, format: Format) -> None:
    header = ["image", "caption", "negative_caption", "paraphrase"]
    rows = [[str(shapes / f"images/0{n}.png"), f"c{n}{m}", f"n{n}{m}", f"p{n}{m}"] for n in range(3) for m in range(2)]
    pairs = read_pairs(str(write_csv(tmp_path / "all.csv", header, rows)))
    made = prepare(pairs, tmp_path / "out", size=24, format=format)
    if format == "parquet":
        back = read_pairs(made.pattern)
        assert (back.captions, back.negatives) == (pairs.captions, pairs.negatives)
        assert back.paraphrases == pairs.paraphrases
    else:
        with tarfile.open(tmp_path / "out" / "shards-000000.tar") as tar:
            texts = json.load(tar.extractfile("000002.json"))  # type: ignore[arg-type]
        assert (texts["negative_caption"], texts["paraphrase"]) == (["n20", "n21"], ["p20", "p21"])
    rows[0][2] = "another"
    other = read_pairs(str(write_csv(tmp_path / "all.csv", header, rows)))
    with pytest.raises(OutputError, match="other data"):
        prepare(other, tmp_path / "out", size=24, format=format)


def test_images_alone_and_class_folders(shapes: Path, tmp_path: Path) -> None:
    made = prepare(read_for_shards(str(shapes / "images")), tmp_path / "alone", size=24)
    back = read_pairs(made.pattern, captions=False)
    assert (len(back.images), back.has_captions) == (16, False)
    for name in ("b/1.png", "a/1.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        draw("red", "cross").save(tmp_path / "tree" / name)  # the same name and size: still two images
    made = prepare(read_for_shards(str(tmp_path / "tree")), tmp_path / "classes", format="parquet")
    assert read_pairs(made.pattern).captions == ["a", "b"]
    assert len(read_pairs(made.pattern).images) == 2


def test_wrong_sources_are_refused(shapes: Path, tmp_path: Path) -> None:
    image = str(shapes / "images/00.png")
    with pytest.raises(DataError, match="row 2"):
        read_for_shards(str(write_csv(tmp_path / "g.csv", ["image", "caption"], [[image, "a"], [image, ""]])))
    with pytest.raises(DataError, match="not found"):
        read_for_shards(str(tmp_path / "none.csv"))
    broken = write_csv(tmp_path / "b.csv", ["image", "caption"], [["no.png", "a"], ["x.png", "b"]])
    with pytest.raises(DataError, match=r"none of its 2 images .*no.png"):
        prepare(read_for_shards(str(broken)), tmp_path / "out")
    text = write_csv(tmp_path / "t.csv", ["caption"], [["a"]])
    with pytest.raises(DataError, match="no images"):
        prepare(read_pairs(str(text), images=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_libraries_read_the_shards(source: Path, tmp_path: Path) -> None:
    import datasets

    pairs = read_pairs(str(source))
    made = prepare(pairs, tmp_path / "p", size=24, format="parquet", shard_size=4)
    loaded = datasets.load_dataset("parquet", data_files=made.pattern, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[3]["image"].size == (31, 24)
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded["caption"][:] == captions_by_image(pairs)
    webdataset = pytest.importorskip("webdataset")
    made = prepare(pairs, tmp_path / "t", size=24, shard_size=4)
    samples = list(webdataset.WebDataset(made.pattern, shardshuffle=False).decode("pil"))
    assert [sample["json"]["caption"] for sample in samples] == captions_by_image(pairs)
    assert min(samples[0]["jpg"].size) == 24


def test_ctrl_c_is_one_line_and_exit_code_130(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Type
) -> None:
    calls, out = [], tmp_path / "out"

    def observe() -> None:
        calls.append(0)
        if len(calls) == 8:
            end = time.monotonic() + 30
            while len(json.loads((out / "prepared.json").read_text())["shards"]) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.5)  # until the main thread has received it

    interrupt(monkeypatch, 99, observe)
    # Where tests run in parallel, their processes ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, error = typed(source, "--out", "out", "--size", 24, "--shard-size", 3, "--workers", 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, error) == (
        130,
        "clipkit: interrupted with 2 of 4 shards finished in out; run the same command again to resume\n",
    )
    assert len(calls) == 8  # images that were waiting are dropped
    assert (out / "shards-000001.tar").is_file()
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("damage", [change_a_byte, Path.unlink])
def test_complete_folder_is_verified_and_damage_is_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    made, before = prepare(pairs, out, size=24, shard_size=4), bytes_in(out)
    interrupt(monkeypatch, 0)
    assert prepare(pairs, out, size=24, shard_size=4) == made
    assert bytes_in(out) == before
    damage(out / "shards-000001.tar")
    with pytest.raises(OutputError, match=r"shards-000001.tar.*delete the folder"):
        prepare(pairs, out, size=24, shard_size=4)


def test_other_settings_and_other_data_are_refused(source: Path, tmp_path: Path) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    prepare(pairs, out, size=24)
    before = bytes_in(out)
    settings: list[tuple[dict[str, Any], str]] = [
        ({"size": 25}, "size 24, not 25"),
        ({"quality": 80}, "quality 90, not 80"),
        ({"format": "parquet"}, "format tar, not parquet"),
        ({"shard_size": 5}, "shard_size 1000, not 5"),
    ]
    for changes, message in settings:
        with pytest.raises(OutputError, match=message):
            prepare(pairs, out, **{"size": 24, **changes})
    with pytest.raises(OutputError, match="other data"):
        prepare(pairs.take(np.arange(5)), out, size=24)
    for folder, message in (
        (source.parent, "00.jpg"),  # the folder is not empty
        (source, "cannot be written to"),
        (tmp_path / "a{b", "a{b"),
    ):
        with pytest.raises(OutputError, match=message):
            prepare(pairs, folder, size=24)
    for wrong in ({"size": 0}, {"quality": 0}, {"quality": 101}, {"shard_size": 0}, {"workers": 0}, {"format": "zip"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            prepare(pairs, tmp_path / "new", **wrong)  # type: ignore[arg-type]
    assert bytes_in(out) == before
    (out / "prepared.json").write_text("{")
    with pytest.raises(OutputError, match="prepared.json"):
        prepare(pairs, out, size=24)
    assert bytes_in(out) == before | {"prepared.json": b"{"}


@pytest.mark.parametrize("format", FORMATS)
def test_broken_images_are_left_out_and_listed(source: Path, tmp_path: Path, format: Format) -> None:
    folder = source.parent
    (folder / "07.png").unlink()
    for name in ("06.jpg", "05.png", "04.jpg", "03.png"):  # all of the second shard
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    pairs = read_for_shards(str(source))
    made = prepare(pairs, tmp_path / "out", size=24, format=format, shard_size=4)
    assert (made.images, made.shards) == (6, 2)  # the first one lacks its last image
    listed = read_lines(tmp_path / "out" / "skipped.jsonl")
    assert [row["image"] for row in listed] == [3, 4, 5, 6, 7]
    assert listed[0]["name"] == "07.png"
    assert str(folder / "07.png") in listed[0]["reason"]
    kept = pairs.take(np.array([0, 1, 2, 8, 9, 10]))
    assert captions_by_image(read_pairs(made.pattern)) == captions_by_image(kept)
    assert prepare(pairs, tmp_path / "out", size=24, format=format, shard_size=4) == made


def test_command_prints_sizes_skipped_images_and_the_new_source(source: Path, typed: Type) -> None:
    (source.parent / "07.png").unlink()
    code, output, _ = typed(source, "--out", "out", "--size", 24, "--shard-size", 4)
    assert code == 0
    lines = output.splitlines()
    assert lines[0].startswith("out: 10 images in 3 shards; 0.")
    assert "1 image" in lines[1]
    assert "out/skipped.jsonl" in lines[1]
    assert lines[2:] == ["data.train: out/shards-{000000..000002}.tar"]
    code, _, error = typed(source, "--out", "out", "--size", 32)
    assert (code, error.count("\n"), "size 24" in error) == (2, 1, True)


@pytest.mark.skipif(not Path("/dev/full").exists() or os.name == "nt", reason="only Linux has a full disk to test with")
def test_full_disk_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sys.modules["clipkit.data.shards"]
    monkeypatch.setattr(shards, "temporary_path", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    with pytest.raises(OutputError, match="No space left on device"):
        prepare(read_pairs(str(source)), tmp_path / "out", size=24)
