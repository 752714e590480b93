"""Preparing data: what goes in comes out, whatever happens on the way."""

import hashlib
import io
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
from clipkit.data.shards import Format, read_shard
from clipkit.errors import DataError, Interrupted, OutputError, UserError
from clipkit.images import open_image
from tests.conftest import draw, read_lines, write_csv
from tests.forked import Running

MODULE = sys.modules[prepare.__module__]  # which the function hides
FORMATS: list[Format] = ["tar", "parquet"]
Type = Callable[..., tuple[int, str, str]]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """11 images of different shapes with one to three captions each, not in the order of their names."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = []
    for number in reversed(range(11)):
        name = f"{number:02d}.{('jpg', 'png')[number % 2]}"
        noise(40 + 3 * number, 60 - 2 * number, number).save(folder / name)
        rows += [[name, f"caption {more} of {number}, “é”"] for more in range(1 + number % 3)]
    return write_csv(folder / "captions.csv", ["image", "caption"], rows)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Type:
    """Run the command in this process: exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipkit", "data", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def captions_by_image(pairs: Pairs) -> list[list[str]]:
    return [[pairs.captions[row] for row in rows] for rows in pairs.captions_of_image]


def complete(folder: Path) -> bool:
    return bool(json.loads((folder / "prepared.json").read_text())["complete"])


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_images_and_captions_come_back_in_order(source: Path, tmp_path: Path, format: Format) -> None:
    pairs = read_pairs(str(source))
    made = prepare(pairs, tmp_path / "out", size=24, lossless=True, format=format, shard_size=4)
    assert made.pattern == str(
        tmp_path / "out" / {"tar": "shards-{000000..000002}.tar", "parquet": "*.parquet"}[format]
    )
    assert (made.images, made.shards, made.skipped) == (11, 3, [])
    back = read_pairs(made.pattern)
    assert captions_by_image(back) == captions_by_image(pairs)
    for before, after in zip(pairs.images, back.images, strict=True):
        big, small = open_image(before), open_image(after)
        short, long = sorted(big.size)
        assert sorted(small.size) == [24, int(24 * long / short)]
        assert (small.width < small.height) == (big.width < big.height)
        assert np.array_equal(small, big.resize(small.size, Image.Resampling.BICUBIC))
    assert made.source_bytes == sum(Path(str(image)).stat().st_size for image in pairs.images)
    assert made.bytes == sum(len(own) for name, own in bytes_in(tmp_path / "out").items() if name.startswith("shards"))


def test_resizing_is_what_preprocessing_does(tmp_path: Path) -> None:
    from torchvision.transforms.v2 import functional as F

    noise(97, 61).save(tmp_path / "a.png")
    small = Image.open(io.BytesIO(encoded(tmp_path / "a.png", 32, lossless=True).content))
    own = F.resize(open_image(tmp_path / "a.png"), [32], interpolation=F.InterpolationMode.BICUBIC)
    assert np.array_equal(small, own)


def test_what_a_tar_holds(source: Path, tmp_path: Path) -> None:
    prepare(read_pairs(str(source)), tmp_path / "out", size=24, shard_size=11)
    with tarfile.open(tmp_path / "out" / "shards-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:3]] == ["000000.jpg", "000000.json", "000001.jpg"]
        assert {(own.mtime, own.uid, own.gid, own.uname, own.mode) for own in members} == {(0, 0, 0, "", 0o644)}
        said = json.load(tar.extractfile("000001.json"))  # type: ignore[arg-type]
    assert said == {"caption": ["caption 0 of 9, “é”"], "name": "09.png"}


@pytest.mark.parametrize("format", FORMATS)
def test_wrong_captions_and_paraphrases_travel_along(shapes: Path, tmp_path: Path, format: Format) -> None:
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
            said = json.load(tar.extractfile("000002.json"))  # type: ignore[arg-type]
        assert said["negative_caption"] == ["n20", "n21"]
        assert said["paraphrase"] == ["p20", "p21"]
    rows[0][2] = "another"
    other = read_pairs(str(write_csv(tmp_path / "all.csv", header, rows)))
    with pytest.raises(OutputError, match="begun with other data"):
        prepare(other, tmp_path / "out", size=24, format=format)


@pytest.mark.parametrize("format", FORMATS)
def test_images_alone(shapes: Path, tmp_path: Path, format: Format) -> None:
    made = prepare(read_for_shards(str(shapes / "images")), tmp_path / "out", size=24, format=format)
    back = read_pairs(made.pattern, captions=False)
    assert (len(back.images), back.has_captions) == (16, False)


def test_class_folders_keep_their_classes_as_captions(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/1.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        draw("red", "cross").save(tmp_path / "tree" / name)  # the same name and size: still two images
    made = prepare(read_for_shards(str(tmp_path / "tree")), tmp_path / "out", format="parquet")
    assert read_pairs(made.pattern).captions == ["a", "b"]
    assert len(read_pairs(made.pattern).images) == 2


def test_an_empty_caption_is_said_before_the_work(shapes: Path, tmp_path: Path) -> None:
    image = str(shapes / "images/00.png")
    with pytest.raises(DataError, match="row 2 has no caption"):
        read_for_shards(str(write_csv(tmp_path / "g.csv", ["image", "caption"], [[image, "a"], [image, ""]])))
    with pytest.raises(DataError, match="no such file"):
        read_for_shards(str(tmp_path / "none.csv"))


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
    assert [own["json"]["caption"] for own in samples] == captions_by_image(pairs)
    assert min(samples[0]["jpg"].size) == 24


def rotated(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(20, 30).save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "write", "kept"),
    [
        ("a.jpg", lambda path: noise(20, 30).save(path, quality=40), True),
        ("a.png", lambda path: noise(24, 30).save(path), True),
        ("a.webp", lambda path: noise(20, 30).save(path), True),
        ("upright.jpg", lambda path: rotated(path, 1), True),
        ("turned.jpg", lambda path: rotated(path, 6), False),
        ("large.jpg", lambda path: noise(25, 30).save(path), False),
        ("grey.jpg", lambda path: noise(20, 30).convert("L").save(path), False),
        ("alpha.png", lambda path: noise(20, 30).convert("RGBA").save(path), False),
        ("one_colour_clear.png", lambda path: noise(20, 30).save(path, transparency=(1, 2, 3)), False),
        ("a.bmp", lambda path: noise(20, 30).save(path), False),
        (
            "moving.webp",
            lambda path: noise(20, 30).save(path, save_all=True, append_images=[noise(20, 30, 1)], lossless=True),
            False,
        ),
    ],
)
def test_small_images_keep_their_bytes(tmp_path: Path, name: str, write: Callable[[Path], None], kept: bool) -> None:
    write(tmp_path / name)
    for lossless in (False, True):
        made = encoded(tmp_path / name, 24, lossless=lossless)
        assert (made.content == (tmp_path / name).read_bytes()) == kept
        assert made.ending == (name[2:] if kept and len(name) < 7 else "jpg" if kept or not lossless else "png")
    opened = Image.open(io.BytesIO(made.content))
    assert (opened.mode, min(opened.size)) == ("RGB", min(24, *open_image(tmp_path / name).size))
    if not kept and name != "large.jpg":  # the last one made is lossless
        assert np.array_equal(opened, open_image(tmp_path / name))


def test_metadata_is_left_behind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    noise(40, 30).save(tmp_path / "a.jpg", exif=exif, comment=b"where I live", icc_profile=b"where I live")
    for lossless in (False, True):
        assert b"where I live" not in encoded(tmp_path / "a.jpg", 24, lossless=lossless).content


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bytes_from_any_number_of_workers(source: Path, tmp_path: Path, format: Format) -> None:
    pairs = read_pairs(str(source))
    for workers in (1, 5):
        prepare(pairs, tmp_path / str(workers), size=24, format=format, shard_size=4, workers=workers)
    time.sleep(1.1)  # a time in a header would be another one
    prepare(pairs, tmp_path / "later", size=24, format=format, shard_size=4)
    assert bytes_in(tmp_path / "1") == bytes_in(tmp_path / "5") == bytes_in(tmp_path / "later")


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int, look: Callable[[], None] = lambda: None) -> None:
    """The encoder, as if Ctrl-C came after so many images."""
    count = 0

    def encode(*arguments: Any) -> Encoded:
        nonlocal count
        count += 1
        look()
        if count > after:
            raise KeyboardInterrupt
        return encoded(*arguments)

    monkeypatch.setattr(MODULE, "encoded", encode)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("after", [0, 3, 4, 6, 10])
def test_interrupted_it_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, after: int
) -> None:
    (source.parent / "04.jpg").write_bytes(b"broken")
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    prepare(pairs, tmp_path / "whole", size=24, format=format, shard_size=4)
    with monkeypatch.context() as patched:
        interrupting(patched, after)
        with pytest.raises(Interrupted, match=f"{after // 4} of 3 shards finished .* the same command goes on") as stop:
            prepare(pairs, out, size=24, format=format, shard_size=4, workers=1)
    assert stop.value.code == 130
    assert not complete(out)
    finished = [f"shards-{number:06d}.{format}" for number in range(after // 4)]
    assert sorted(name for name in bytes_in(out) if "shards" in name) == finished
    seen: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(MODULE, "encoded", lambda *own: (seen.append(own[0]), encoded(*own))[1])
        prepare(pairs, out, size=24, format=format, shard_size=4, workers=1)
    assert len(seen) == 11 - after // 4 * 4  # what was finished is not made again
    assert bytes_in(out) == bytes_in(tmp_path / "whole")
    assert complete(out)


def test_a_list_that_was_cut_short_is_mended(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("09.png", "04.jpg"):  # one in each of the first two shards
        (source.parent / name).write_bytes(b"broken")
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    for after in (4, 4):
        with monkeypatch.context() as patched:
            interrupting(patched, after)
            with pytest.raises(Interrupted):
                prepare(pairs, out, size=24, shard_size=4, workers=1)
        with (out / "skipped.jsonl").open("a") as file:
            file.write('{"image": 10, "na')
    seen: list[None] = []
    interrupting(monkeypatch, 99, lambda: seen.append(None))
    made = prepare(pairs, out, size=24, shard_size=4)
    assert len(seen) == 3
    assert [own["image"] for own in read_lines(out / "skipped.jsonl")] == [1, 6] == [n.image for n in made.skipped]


def test_nothing_half_written_is_named_like_a_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    seen = set()

    def look() -> None:
        seen.update(file.name for file in out.glob(".shards*"))
        for file in out.glob("shards*"):
            shard = read_shard(file)
            assert shard is not None
            assert shard.samples == 4
        assert not complete(out)

    interrupting(monkeypatch, 99, look)
    monkeypatch.setattr(MODULE, "_AHEAD", 1)
    prepare(pairs, out, size=24, shard_size=4, workers=1)
    assert seen == {f".shards-00000{number}.tar.writing" for number in range(3)}
    assert not list(out.glob(".*"))


KILLED = """
import sys, time
import clipkit.data.prepare
from clipkit.data import prepare, read_pairs
module = sys.modules["clipkit.data.prepare"]
encode = module.encoded
def slow(*own):
    time.sleep(0.15)
    return encode(*own)
module.encoded = slow
prepare(read_pairs(sys.argv[1]), sys.argv[2], size=24, shard_size=3, workers=1)
"""


def test_killed_it_goes_on(source: Path, tmp_path: Path) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    prepare(pairs, tmp_path / "whole", size=24, shard_size=3)
    running = Running(["-c", KILLED, source, out])
    end = time.monotonic() + 60
    while not (list(out.glob("shards-000000.tar")) and list(out.glob(".shards-*"))) and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(OutputError, match="is being written to by another process"):
        prepare(pairs, out, size=24, shard_size=3)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert list(out.glob(".shards-*.writing"))
    assert not complete(out)
    prepare(pairs, out, size=24, shard_size=3)
    assert bytes_in(out) == bytes_in(tmp_path / "whole")


def test_ctrl_c_is_one_line_and_130(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Type) -> None:
    calls, out = [], tmp_path / "out"

    def look() -> None:
        calls.append(0)
        if len(calls) == 8:
            end = time.monotonic() + 30
            while len(json.loads((out / "prepared.json").read_text())["shards"]) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.5)  # until the main thread has heard it

    interrupting(monkeypatch, 99, look)
    # As in a program of its own: where tests run side by side, their processes are told to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, said = typed(source, "--out", "out", "--size", 24, "--shard-size", 3, "--workers", 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, said) == (130, "clipkit: interrupted with 2 of 4 shards finished in out; the same command goes on\n")
    assert len(calls) == 8  # those that were waiting for their turn are given up
    assert (out / "shards-000001.tar").is_file()
    assert not list(out.glob(".*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", [cut, change_a_byte, Path.unlink])
@pytest.mark.parametrize("was_complete", [True, False])
def test_a_damaged_shard_is_made_again(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: Format,
    damage: Callable[[Path], None],
    was_complete: bool,
) -> None:
    (source.parent / "05.png").unlink()
    pairs, out = read_pairs(str(source), broken=("images",)), tmp_path / "out"
    prepare(pairs, tmp_path / "whole", size=24, format=format, shard_size=4)
    with monkeypatch.context() as patched:
        interrupting(patched, 99 if was_complete else 9)
        try:
            prepare(pairs, out, size=24, format=format, shard_size=4, workers=1)
        except Interrupted:
            assert not was_complete
    damage(out / f"shards-000001.{format}")
    seen: list[bool] = []
    with monkeypatch.context() as patched:
        interrupting(patched, 99, lambda: seen.append(complete(out)))
        prepare(pairs, out, size=24, format=format, shard_size=4)
    assert seen == [False] * (4 if was_complete else 7)
    assert bytes_in(out) == bytes_in(tmp_path / "whole")


def test_what_is_complete_is_verified_and_not_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    made, before = prepare(pairs, out, size=24), bytes_in(out)
    interrupting(monkeypatch, 0)
    assert prepare(pairs, out, size=24) == made
    assert bytes_in(out) == before


def test_a_disk_that_loses_what_was_written_is_not_believed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"

    def look() -> None:
        if (out / "shards-000000.tar").exists():
            change_a_byte(out / "shards-000000.tar")
            monkeypatch.setattr(MODULE, "encoded", encoded)

    interrupting(monkeypatch, 99, look)
    with pytest.raises(OutputError, match="shards-000000.tar: is not as it was written"):
        prepare(pairs, out, size=24, shard_size=2, workers=1)
    assert not complete(out)
    prepare(pairs, out, size=24, shard_size=2)
    assert complete(out)


def test_other_settings_and_other_data_are_refused(source: Path, tmp_path: Path) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    prepare(pairs, out, size=24)
    before = bytes_in(out)
    with pytest.raises(OutputError, match="was begun with size 24, not 25"):
        prepare(pairs, out, size=25)
    with pytest.raises(OutputError, match="quality 90, not 80"):
        prepare(pairs, out, size=24, quality=80)
    with pytest.raises(OutputError, match="format tar, not parquet"):
        prepare(pairs, out, size=24, format="parquet")
    with pytest.raises(OutputError, match="shard_size 1000, not 5"):
        prepare(pairs, out, size=24, shard_size=5)
    with pytest.raises(OutputError, match="begun with other data"):
        prepare(pairs.take(np.arange(5)), out, size=24)
    with pytest.raises(OutputError, match=r"is not empty \(it has 00.jpg\)"):
        prepare(pairs, source.parent, size=24)
    with pytest.raises(OutputError, match="cannot be written to"):
        prepare(pairs, source, size=24)
    with pytest.raises(OutputError, match="signs in its name"):
        prepare(pairs, tmp_path / "a{b", size=24)
    with pytest.raises(UserError, match="size is 0"):
        prepare(pairs, tmp_path / "new", size=0)
    assert bytes_in(out) == before
    (out / "prepared.json").write_text("{")
    with pytest.raises(OutputError, match="prepared.json: cannot be read"):
        prepare(pairs, out, size=24)
    assert {name: own for name, own in bytes_in(out).items() if name != "prepared.json"} == {
        name: own for name, own in before.items() if name != "prepared.json"
    }


@pytest.mark.parametrize("format", FORMATS)
def test_broken_images_are_left_out_and_listed(source: Path, tmp_path: Path, format: Format) -> None:
    folder = source.parent
    (folder / "07.png").unlink()
    for name in ("06.jpg", "05.png", "04.jpg", "03.png"):  # the whole of the second shard
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    pairs = read_for_shards(str(source))
    made = prepare(pairs, tmp_path / "out", size=24, format=format, shard_size=4)
    assert (made.images, made.shards) == (6, 2)  # the first lacks its last image
    listed = read_lines(tmp_path / "out" / "skipped.jsonl")
    assert [own["image"] for own in listed] == [3, 4, 5, 6, 7]
    assert listed[0] == {
        "image": 3,
        "name": "07.png",
        "reason": f"{folder / '07.png'}: there is no such image; check the path",
    }
    assert "cannot be" in listed[1]["reason"]
    back = read_pairs(made.pattern)
    kept = pairs.take(np.array([0, 1, 2, 8, 9, 10]))
    assert captions_by_image(back) == captions_by_image(kept)
    before = bytes_in(tmp_path / "out")
    assert prepare(pairs, tmp_path / "out", size=24, format=format, shard_size=4) == made
    (tmp_path / "out" / "skipped.jsonl").unlink()  # what is counted but not listed is looked at again
    assert prepare(pairs, tmp_path / "out", size=24, format=format, shard_size=4) == made
    assert bytes_in(tmp_path / "out") == before


def test_when_all_are_broken(shapes: Path, tmp_path: Path) -> None:
    pairs = read_for_shards(str(write_csv(tmp_path / "b.csv", ["image", "caption"], [["no.png", "a"], ["x.png", "b"]])))
    with pytest.raises(DataError, match=r"none of its 2 images can be used; the first: .*no.png: there is no such"):
        prepare(pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = write_csv(tmp_path / "t.csv", ["caption"], [["a"]])
    with pytest.raises(DataError, match="captions alone"):
        prepare(read_pairs(str(text), images=False), tmp_path / "out")


def test_as_it_is_typed(source: Path, typed: Type) -> None:
    (source.parent / "07.png").unlink()
    code, said, _ = typed(source, "--out", "out", "--size", 24, "--shard-size", 4)
    assert code == 0
    lines = said.splitlines()
    assert lines[0].startswith("out: 10 images in 3 shards; 0.")
    assert lines[1:] == [
        "1 images were skipped; out/skipped.jsonl says which and why",
        "data.train: out/shards-{000000..000002}.tar",
    ]
    code, _, said = typed(source, "--out", "out", "--size", 32)
    assert (code, said.count("\n"), "begun with size 24" in said) == (2, 1, True)


def test_hashes_are_of_the_files(source: Path, tmp_path: Path) -> None:
    prepare(read_pairs(str(source)), tmp_path / "out", size=24, shard_size=4)
    for own in json.loads((tmp_path / "out" / "prepared.json").read_text())["shards"]:
        content = (tmp_path / "out" / own["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (own["bytes"], own["sha256"])


@pytest.mark.skipif(not Path("/dev/full").exists() or os.name == "nt", reason="Linux has a full disk to try")
def test_a_full_disk_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sys.modules["clipkit.data.shards"]
    monkeypatch.setattr(shards, "aside_of", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    with pytest.raises(OutputError, match="No space left on device"):
        prepare(read_pairs(str(source)), tmp_path / "out", size=24)
