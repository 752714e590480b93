"""Damaged files of every kind give an error of one line, or none; never a traceback, a hang or a wrong count."""

import csv
import faulthandler
import io
import json
import re
import signal
import struct
import sys
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import clipkit
from clipkit.cli import main
from clipkit.data import (
    EpochSampler,
    InputMaker,
    Pairs,
    Policy,
    TextView,
    loader,
    pair_loader,
    read_classes,
    read_labeled,
    read_near_misses,
    read_pairs,
    read_templates,
)
from clipkit.data.checks import check
from clipkit.data.loader import Batch
from clipkit.embedding.hashes import content_hashes
from clipkit.errors import DataError
from clipkit.images import Stored, open_image
from clipkit.recipe import Recipe
from clipkit.recipe.policies import Crop
from tests.conftest import draw, read_lines, write_csv
from tests.data.mutations import HTML, images, mutated, tables
from tests.data.test_loader import to_tensor, tokenize
from tests.forked import python, together
from tests.training import several_runs

Build = Callable[..., Recipe]
# Damaged copies of each of 7 tables and archives, and of each of 26 images: about 100; the slow tests have thousands.
_EACH_TABLE = 7
_EACH_IMAGE = 2
_SECONDS = 20  # far more than any file takes, even on a busy machine


class HangError(BaseException):
    """Not an Exception, so that the code under test cannot catch it."""


@contextmanager
def watched(seconds: int = _SECONDS) -> Iterator[None]:
    """Raise HangError if the block takes longer; end the tests if a thread hangs that cannot be woken."""

    def wake(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        yield
    datasets.enable_progress_bars()


def read(source: Path, **settings: object) -> Pairs | None:
    """Return the pairs; None if they are refused with an error of one line that names the file."""
    try:
        return read_pairs(str(source), **settings)  # type: ignore[arg-type]
    except DataError as error:
        said = str(error)
    assert len(said.splitlines()) == 1, repr(said)
    assert source.name in said
    return None


def opened(image: Path | Stored, draft: int | None = None) -> bool:
    """Return whether an image opens; otherwise check that the error is one line and names it."""
    try:
        return open_image(image, draft).mode == "RGB"
    except DataError as error:
        said = str(error)
    assert len(said.splitlines()) == 1, repr(said)
    assert all(word in said for word in re.findall(r"\w+", image.name)), said  # control characters are escaped
    return False


def rows_in(name: str, content: bytes) -> int:
    """Count the captions of a file, independently of clipkit."""
    if name.endswith((".csv", ".tsv")):
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        return len([row for row in csv.reader(text, delimiter="\t" if name.endswith(".tsv") else ",") if row]) - 1
    if name.endswith(".jsonl"):
        values = [
            json.loads(line).get("text") or [""] for line in content.decode("utf-8-sig").split("\n") if line.strip()
        ]
        return sum(1 if isinstance(own, str) else len(own) for own in values)
    if name.endswith(".tar"):
        blocks = [content[start : start + 512] for start in range(0, len(content), 512)]
        headers = [block for block in blocks if block[257:262] == b"ustar" and _has_its_sum(block)]
        stems = [
            header[:100].rstrip(b"\0").rpartition(b".")[0].rpartition(b"/")[2].split(b".")[0] for header in headers
        ]
        return len(list(groupby(stems)))
    return parquet.read_metadata(io.BytesIO(content)).num_rows * (2 if "lists" in name else 1)


def _has_its_sum(header: bytes) -> bool:
    return int(header[148:154], 8) == sum(header[:148] + b" " * 8 + header[156:])


def look_through_tables(folder: Path, each: int, seed: int) -> int:
    """Read every damaged table and archive in every way; return their number."""
    count = kept = 0
    for name, content in tables(folder).items():
        for label, damaged in mutated(content, each, seed):
            (folder / name).write_bytes(damaged)
            count += 1
            with watched():
                try:
                    pairs = read(folder / name)
                    if pairs is not None:
                        kept += 1
                        assert len(pairs.captions) == len(pairs.image_of_caption) == rows_in(name, damaged)
                        assert pairs.fingerprint
                    whatever = read(folder / name, broken=("images", "captions"))
                    if whatever is None:
                        assert pairs is None
                        continue
                    refused = {place for place, own in enumerate(whatever.images) if not opened(own)}
                    assert check(whatever, workers=1).broken.keys() == refused
                except BaseException as error:
                    error.add_note(f"{name}, {label}")
                    raise
    assert kept > count // 20
    return count


def test_damaged_tables_and_archives(tmp_path: Path) -> None:
    assert look_through_tables(tmp_path, _EACH_TABLE, seed=0) == 7 * _EACH_TABLE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_many_damaged_tables_and_archives(tmp_path: Path, seed: int) -> None:
    look_through_tables(tmp_path, 300, seed)


def damaged_images(each: int, seed: int) -> dict[str, bytes]:
    return {
        f"{label}-{name}": damaged
        for name, content in images().items()
        for label, damaged in mutated(content, each, seed)
    } | by_hand()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *extra: bytes) -> bytes:
    """Return a black PNG image with one bit per pixel."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def by_hand() -> dict[str, bytes]:
    """Damaged files that random changes do not produce."""
    jpeg = images()["rgb.jpg"]
    frame = jpeg.index(b"\xff\xc0")
    bomb = zlib.compress(bytes(80_000_000), 9)
    return {
        "huge.png": _png(30_000, 20_000),
        "huge.jpg": jpeg[: frame + 5] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 9 :],
        "strip.png": _png(60_000, 1),
        "strip-up.png": _png(1, 60_000),
        "no-rows.jpg": jpeg[: frame + 5] + struct.pack(">HH", 0, 48) + jpeg[frame + 9 :],
        "text-bomb.png": _png(48, 40, _chunk(b"zTXt", b"Comment\0\0" + bomb)),
        "profile-bomb.png": _png(48, 40, _chunk(b"iCCP", b"profile\0\0" + bomb)),
        "drawing.svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "two\nlines.png": HTML,
    }


def test_hand_made_images_are_refused(tmp_path: Path) -> None:
    for name, content in by_hand().items():
        (tmp_path / name).write_bytes(content)
        with watched():
            assert not opened(tmp_path / name)
    with pytest.raises(DataError, match="strip.png: an image of 60000 × 1 pixels is more than 200 times"):
        open_image(tmp_path / "strip.png")
    with pytest.raises(DataError, match="an image of 1 × 300 pixels is more than 200 times"):
        open_image(np.zeros((300, 1, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="huge.jpg: is over the limit of 178956970 pixels"):
        open_image(tmp_path / "huge.jpg")
    with pytest.raises(DataError, match="two lines.png: is not an image"):
        open_image(tmp_path / "two\nlines.png")
    assert not opened(tmp_path)


@pytest.mark.parametrize("error", [struct.error("unpack"), zlib.error("-3"), AssertionError(), RecursionError("deep")])
def test_any_error_of_a_decoder_becomes_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: object) -> None:
        raise error

    draw("red", "circle").save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(DataError, match=rf"a.png: cannot be decoded \({str(error) or 'AssertionError'}\)"):
        open_image(tmp_path / "a.png")


class Damaged:
    """Dataset of sound images, some of which can then be damaged."""

    def __init__(self, folder: Path, each: int, seed: int) -> None:
        folder.mkdir()
        self.folder = folder
        files = damaged_images(each, seed)
        sound = images()["rgb.png"]
        names = [*files, *(f"sound-{number}.png" for number in range(len(files) // 3))]
        # Whole batches, so that each image comes once in an epoch.
        names += [f"filling-{number}.png" for number in range(-len(names) % GLOBAL)]
        self.names = [names[place] for place in np.random.default_rng(seed).permutation(len(names)).tolist()]
        for name in self.names:
            (folder / name).write_bytes(sound)
        rows = [[name, f"words of {number}"] for number, name in enumerate(self.names)]
        self.csv = write_csv(folder / "p.csv", ["image", "caption"], rows)
        self.files = files

    def damage(self) -> set[int]:
        """Damage images; return the positions of those that open_image refuses."""
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)
        with watched(120):
            return {place for place, name in enumerate(self.names) if not opened(self.folder / name)}


GLOBAL = 32


def batches_of(pairs: Pairs, workers: int, rows: slice) -> list[Batch]:
    """Return the batches of one epoch on one process."""
    sampler = EpochSampler(pairs, "one", GLOBAL, 0)
    crop = Policy([Crop(scale=(0.3, 1.0))], 16, to_tensor, to_tensor, 0)
    texts = {"text_features": TextView("same", pairs)}
    slices = sampler.slices(0, sampler.steps_per_epoch, rows)
    return list(
        pair_loader(pairs, slices, InputMaker({"image_features": crop}, texts, tokenize), workers, sampler.replacement)
    )


def compare_with_sound(data: Damaged, workers: tuple[int, ...]) -> set[int]:
    """Check that damage changes only the rows of damaged images; return their positions."""
    pairs = read_pairs(str(data.csv))
    sound = batches_of(pairs, 0, slice(0, GLOBAL))
    assert len(sound) * GLOBAL == len(pairs.images)
    bad = data.damage()
    assert len(bad) > len(data.files) // 3
    assert len(bad) < len(data.files)
    touched = torch.tensor([name in data.files for name in data.names])
    sampler = EpochSampler(pairs, "one", GLOBAL, 0)
    for count in workers:
        whole = batches_of(pairs, count, slice(0, GLOBAL))
        met: set[int] = set()
        for one, two in zip(sound, whole, strict=True):
            due = [place for place in one.image_ids.tolist() if place in bad]
            assert set(due) <= two.bad.keys() <= bad
            met |= two.bad.keys()
            kept = torch.tensor([place not in bad for place in one.image_ids.tolist()])
            assert torch.equal(one.image_ids == two.image_ids, kept)
            assert not set(two.image_ids.tolist()) & bad
            same = kept & ~touched[one.image_ids]
            _same_rows(one, same, two, same)
        assert met == bad
        halves = [batches_of(pairs, count, slice(*ends)) for ends in ((0, GLOBAL // 2), (GLOBAL // 2, GLOBAL))]
        for one, first, second in zip(whole, *halves, strict=True):
            for half, rows in ((first, slice(0, GLOBAL // 2)), (second, slice(GLOBAL // 2, GLOBAL))):
                assert torch.equal(one.image_ids[rows], half.image_ids)
                _same_rows(one, rows, half, slice(None))
            assert one.bad == {**first.bad, **second.bad}
    assert sampler.steps_per_epoch == len(sound)
    return bad


def _same_rows(one: Batch, its: torch.Tensor | slice, two: Batch, others: torch.Tensor | slice) -> None:
    for name, inputs in one.inputs.items():
        for key, values in inputs.items():
            # Padding goes to the longest caption of a batch.
            width = min(values.shape[-1], two.inputs[name][key].shape[-1])
            assert torch.equal(values[its][..., :width], two.inputs[name][key][others][..., :width])
            assert not values[its][..., width:].any()


def test_damaged_images_are_replaced(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_CHUNK", 12)
    data = Damaged(tmp_path / "images", _EACH_IMAGE, seed=0)
    bad = compare_with_sound(data, workers=(0,))
    drafted = {place for place, name in enumerate(data.names) if not opened(data.folder / name, draft=8)}
    assert drafted == bad
    report = check(read_pairs(str(data.csv)), workers=2)
    assert report.broken.keys() == bad
    assert next(one for one in report.findings if one.name == "broken_images").count == len(bad)
    _train(recipe, data, tmp_path / "run", bad)


def _changes(data: Damaged, output: Path) -> dict[str, object]:
    return {
        "data.train": str(data.csv), "data.max_bad": len(data.names), "train.batch_size": GLOBAL, "train.epochs": 1,
        "eval.every_epochs": 1000, "output": str(output),
    }  # fmt: skip


def _train(recipe: Build, data: Damaged, output: Path, bad: set[int]) -> None:
    with watched(120):
        clipkit.train(recipe(_changes(data, output)))
    listed = read_lines(output / "bad_samples.jsonl")
    assert sorted(row["image"] for row in listed) == sorted(bad)
    assert {row["file"] for row in listed} == {str(data.folder / data.names[place]) for place in bad}
    assert all(len(row["reason"].splitlines()) == 1 for row in listed)
    assert len(read_lines(output / "metrics.jsonl")) == len(data.names) // GLOBAL
    assert all(np.isfinite(row["loss"]) for row in read_lines(output / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_damaged_images_on_one_process_and_on_two(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(loader, "_CHUNK", 12)
    data = Damaged(tmp_path / "images", 40, seed)
    bad = compare_with_sound(data, workers=(0, 2))
    assert check(read_pairs(str(data.csv)), workers=2).broken.keys() == bad
    one, two = tmp_path / "one", tmp_path / "two"
    _train(recipe, data, one, bad)
    (tmp_path / "two.yaml").write_text(recipe({**_changes(data, two), "data.workers": 1}).to_yaml())
    together(2, several_runs.__file__, str(tmp_path / "two.yaml"))
    assert (tmp_path / "two-1-of-2.txt").exists()
    assert read_lines(one / "bad_samples.jsonl") == read_lines(two / "bad_samples.jsonl")
    losses = [[row["loss"] for row in read_lines(run / "metrics.jsonl")] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_damaged_files_on_the_command_line(recipe: Build, tiny_clip: Path, tmp_path: Path) -> None:
    data = Damaged(tmp_path / "images", 2, seed=3)
    bad = data.damage()

    def clipkit_(code: int, *arguments: object) -> str:
        done = python("-m", "clipkit", *map(str, arguments))
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stderr
        return done.stderr

    clipkit_(0, "data", "check", data.csv, "--json", tmp_path / "found.json")
    found = {one["name"]: one["count"] for one in json.loads((tmp_path / "found.json").read_text())["findings"]}
    assert found["broken_images"] == len(bad)
    clipkit_(0, "data", "check", data.csv, "--fix", tmp_path / "fixed")
    assert not check(read_pairs(str(tmp_path / "fixed" / "captions.csv"))).broken
    (tmp_path / "r.yaml").write_text(recipe(_changes(data, tmp_path / "run")).to_yaml())
    clipkit_(0, "train", tmp_path / "r.yaml")
    assert len(read_lines(tmp_path / "run" / "bad_samples.jsonl")) == len(bad)
    said = clipkit_(1, "train", tmp_path / "r.yaml", "data.max_bad=3", "--overwrite")
    assert "data.max_bad allows 3;" in said
    evaluated = ("eval", "retrieval", "--model", tiny_clip, "--cache", "none", "--data")
    said = clipkit_(2, *evaluated, data.csv)
    assert any(f"/{' '.join(data.names[place].splitlines())}: " in said.splitlines()[-1] for place in bad)
    for name, content in tables(tmp_path / "tables").items():
        file = tmp_path / "tables" / name
        file.write_bytes(content[: len(content) // 2])
        refused = [
            ["data", "check", file],
            [*evaluated, file],
            ["train", tmp_path / "r.yaml", f"data.train={file}", "--overwrite"],
        ]
        for arguments in refused if name in ("t.tar", "bytes.parquet", "t.csv") else refused[:1]:
            if read(file, broken=("images", "captions")) is None:
                assert name in clipkit_(2, *arguments).splitlines()[-1]


def test_one_damaged_image_in_an_evaluation(
    tiny_clip: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("red", "circle").save(tmp_path / "0.png")
    table = write_csv(
        tmp_path / "p.csv", ["image", "caption", "label"], [[f"{n}.png", f"words {n}", "x"] for n in (0, 1)]
    )
    for content in (HTML, b"", images()["rgb.png"][:3000], by_hand()["strip.png"], by_hand()["huge.jpg"]):
        (tmp_path / "1.png").write_bytes(content)
        for task in ("retrieval", "zeroshot"):
            monkeypatch.setattr(
                sys,
                "argv",
                ["clipkit", "eval", task, "--model", str(tiny_clip), "--data", str(table), "--cache", "none"],
            )
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 2
            said = capsys.readouterr().err
            assert re.fullmatch(r"clipkit: .*1\.png: .*\n", said), said


# --- tables and archives that chance does not come upon ---------------------------------------------------------------


def _member(name: bytes, size: bytes, kind: bytes = b"0", content: bytes = b"", rest: bytes = b"") -> bytes:
    """Return a tar member with a valid checksum, and its content in whole blocks."""
    header = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.rjust(12, b"\0"))
    header += b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar  \0" + bytes(80)
    header += rest.ljust(167, b"\0")
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def _octal(size: int) -> bytes:
    return b"%011o\0" % size


def _file(name: str, content: bytes) -> bytes:
    return _member(name.encode(), _octal(len(content)), content=content)


_END = bytes(1024)
_IMAGE = images()["rgb.png"]
_SAMPLE = _file("0.png", _IMAGE) + _file("0.txt", b"words")
_NEGATIVE = b"\xff" * 8 + struct.pack(">i", -512)  # its header is the next one, for ever
_TARS: dict[str, tuple[bytes, str | None]] = {
    "sound": (_SAMPLE + _END, None),
    "size below zero": (_SAMPLE + _member(b"1.png", _NEGATIVE) + _END, "is a damaged tar"),
    "size below zero of what is no file": (_SAMPLE + _member(b"1", _NEGATIVE, b"7") + _END, "is a damaged tar"),
    "size below zero in a pax header": (
        _SAMPLE + _member(b"p", _octal(15), b"x", b"15 size=-51200\n") + _file("1.png", _IMAGE) + _END,
        "is a damaged tar",
    ),
    "size beyond all files": (_SAMPLE + _member(b"1.png", b"\x80" + b"\x7f" * 11) + _END, "damaged tar|is truncated"),
    "a text of eight gigabytes": (_SAMPLE + _member(b"1.txt", b"77777777777\0") + _END, "damaged tar|is truncated"),
    "a long name of eight gigabytes": (_SAMPLE + _member(b"@", b"77777777777\0", b"L") + _END, "is a damaged tar"),
    "sparse, and cut off": (_member(b"1.png", _octal(0), b"S", rest=b"\0" * 137 + b"\1")[:512], "tar"),
    "a thousand long names": (_member(b"@", _octal(2), b"L", b"x\0") * 3000 + _SAMPLE + _END, "is a damaged tar"),
    "a damaged header in the middle": (_SAMPLE + b"\7" + _SAMPLE[1:] + _END, "no header at byte .* more data follows"),
    "zeros in the middle": (_SAMPLE + _END + _SAMPLE + _END, "no header at byte .* more data follows"),
    "a line break in a name": (_file("1\n2.txt", b"caf\xe9") + _END, "1 2.txt: is not UTF-8"),
    "a name that is not UTF-8": (_SAMPLE + _member(b"\xe9.png", _octal(0)) + _END, "damaged tar"),
    "JSON that is no object": (
        _file("0.png", _IMAGE) + _file("0.json", b"[1]") + _END,
        "none of its 1 samples has a",
    ),
    "JSON with half a pair": (_file("0.png", b"") + _file("0.json", b'{"caption": "\\ud800"}') + _END, "damaged tar"),
    "JSON that is deep": (_file("0.png", b"") + _file("0.json", b"[" * 100_000) + _END, "is not JSON"),
    "JSON with a long number": (_file("0.png", b"") + _file("0.json", b"9" * 10_000) + _END, "is not JSON"),
}


@pytest.mark.parametrize("name", _TARS)
def test_inconsistent_tars_are_refused(name: str, tmp_path: Path) -> None:
    content, message = _TARS[name]
    (tmp_path / "t.tar").write_bytes(content)
    with watched():
        if message is None:
            assert len(read_pairs(str(tmp_path / "t.tar")).captions) == 1
            return
        with pytest.raises(DataError, match=f"t.tar.*{message}") as caught:
            read_pairs(str(tmp_path / "t.tar"))
    assert len(str(caught.value).splitlines()) == 1


_LONG = "x" * 300 + ".png"


@pytest.mark.parametrize(
    "name", ["a\0b.png", _LONG, f"no/{_LONG}", "two\nlines.png", "\u2028.png", "..", "", "a.png/b"]
)
def test_invalid_file_names_count_as_missing(name: str, tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "a.png")
    many = [[f"{number}-{name}", "words"] for number in range(150)]  # a folder of many files is looked at as a whole
    for rows in ([["a.png", "words"], [name, "words"]], [["a.png", "words"], [name, "words"], *many]):
        table = write_csv(tmp_path / "p.csv", ["image", "caption"], rows)
        assert read(table) is None
        pairs = read(table, broken=("images",))
        assert pairs is not None
        assert pairs.fingerprint
        assert check(pairs, workers=1).broken.keys() == set(range(1, len(pairs.images)))
        write_csv(tmp_path / "l.csv", ["image", "label"], rows)
        with pytest.raises(DataError, match="images are missing") as caught:
            read_labeled(str(tmp_path / "l.csv"))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("reader", [read_classes, read_templates, read_near_misses])
def test_damaged_classes_templates_and_near_misses_are_refused(reader: Callable[[str], object], tmp_path: Path) -> None:
    for content in (b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"\xff\xfe[\0]\0", b"", HTML):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(DataError, match="x.json") as caught:
            reader(str(tmp_path / "x.json"))
        assert len(str(caught.value).splitlines()) == 1


def test_parquet_columns_with_invalid_content_are_refused(tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "a.png")
    broken = pa.array([b"caf\xe9", b"tea"]).view(pa.string())
    columns = {
        "caption": {"image": ["a.png"] * 2, "caption": broken},
        "image": {"image": broken, "caption": ["x", "y"]},
        "captions": {"image": ["a.png"] * 2, "captions": pa.ListArray.from_arrays([0, 1, 2], broken)},
    }
    for name, own in columns.items():
        parquet.write_table(pa.table(own), tmp_path / "t.parquet")
        with pytest.raises(DataError, match=f"t.parquet: column {name} is damaged .*UTF8"):
            read_pairs(str(tmp_path / "t.parquet"))
    empty = pa.table(
        {
            "image": pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "caption": pa.array([], pa.string()),
        }
    )
    parquet.write_table(empty, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") is None


def test_a_saved_dataset_with_wrong_offsets_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset, Value
    from datasets.features import Features
    from datasets.features import Image as ImageFeature

    features = Features({"image": ImageFeature(), "caption": Value("string")})
    rows = {"image": [{"bytes": b"xy", "path": "a.png"}] * 3, "caption": ["x"] * 3}
    for column in ("image", "caption"):
        saved = tmp_path / column
        Dataset.from_dict(rows, features=features).save_to_disk(saved)
        file = saved / "data-00000-of-00001.arrow"
        with pa.ipc.open_stream(file.read_bytes()) as stream:
            schema, table = stream.schema, stream.read_all()
        buffers = [None, pa.array([0, 9_000_000, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"xyz")]
        if column == "image":
            lying = pa.Array.from_buffers(pa.binary(), 3, buffers)
            lying = pa.StructArray.from_arrays([lying, pa.array(["a.png"] * 3)], ["bytes", "path"])
        else:
            lying = pa.Array.from_buffers(pa.string(), 3, buffers)
        table = table.set_column(table.column_names.index(column), schema.field(column), lying)
        file.unlink()
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
        with pytest.raises(DataError, match="Offset invariant failure"):
            read_pairs(str(saved))


def test_missing_values_and_values_of_another_type(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw("red", "circle").save(tmp_path / name)
    file = tmp_path / "t.parquet"
    for labels in ([["x", None], ["y"]], [[], ["x"]], ["", "x"]):
        parquet.write_table(pa.table({"image": ["a.png", "b.png"], "label": labels}), file)
        with pytest.raises(DataError, match="row [12] has no label"):
            read_labeled(str(file))
        assert read_pairs(str(file), captions=False).has_images
    for labels in ([None, ["x"]], [None, "x"], [1, None]):
        parquet.write_table(pa.table({"image": ["a.png", "b.png"], "label": labels}), file)
        labeled = read_labeled(str(file))
        assert (len(labeled.images), len(labeled.classes)) == (1, 1)
        assert [finding.count for finding in labeled.findings if finding.name == "unlabeled_images"] == [1]
    views = [] if int(pa.__version__.split(".")[0]) < 21 else [pa.string_view()]  # older ones cannot write them
    for kind in (pa.dictionary(pa.int32(), pa.string()), *views):
        column = pa.array(["a.png", "b.png"], kind)
        parquet.write_table(pa.table({"image": column, "caption": column}), file)
        pairs = read_pairs(str(file))
        assert (list(pairs.captions), list(pairs.images)) == (
            ["a.png", "b.png"],
            [tmp_path / "a.png", tmp_path / "b.png"],
        )
    for values in (
        [{"bytes": "text"}, {"bytes": "other"}],
        [b"x", None],
        [{"bytes": None, "path": None}, {"bytes": b"", "path": "a\nb"}],
    ):
        parquet.write_table(pa.table({"image": values, "caption": ["x", "y"]}), file)
        pairs = read_pairs(str(file))
        assert not any(opened(own) for own in pairs.images)
        assert len(check(pairs, workers=1).broken) == 2
    with pytest.raises(DataError, match="row 1.*cannot be read .the row has no image"):
        content_hashes(pairs.images)
    parquet.write_table(pa.table({"image": [{"bytes": None, "path": "gone.png"}], "caption": ["x"]}), file)
    with pytest.raises(DataError, match="1 of its 1 images are missing.*gone.png"):
        read_pairs(str(file))


def test_a_tar_of_damaged_images_has_the_right_counts(tmp_path: Path) -> None:
    files = list(damaged_images(1, 5).values())
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for place, content in enumerate(files):
            for ending, own in (("png", content), ("txt", b"words")):
                member = tarfile.TarInfo(f"{place:04d}.{ending}")
                member.size = len(own)
                tar.addfile(member, io.BytesIO(own))
    pairs = read_pairs(str(tmp_path / "t.tar"))
    assert len(pairs.images) == len(pairs.captions) == len(files)
    refused = set()
    for place, content in enumerate(files):
        (tmp_path / "one.png").write_bytes(content)
        if not opened(tmp_path / "one.png"):
            refused.add(place)
    assert check(pairs, workers=2).broken.keys() == refused
