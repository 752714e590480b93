"""Pipes, devices, sockets, folders and pseudo files among the data: nothing waits for them."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clipkit
from clipkit.data import broken_images, read_labeled, read_pairs
from clipkit.data.checks.scan import scan_images
from clipkit.data.near_misses import read_near_misses
from clipkit.data.prepare import prepare, read_for_shards
from clipkit.data.prompts import read_classes, read_templates
from clipkit.embedding.hashes import content_hashes
from clipkit.errors import DataError
from clipkit.images import open_image
from clipkit.opening import open_file, read_file, read_text
from tests.conftest import draw, read_lines, write_csv
from tests.security.hostile import images, special_files


class HangError(BaseException):
    """Not an Exception, so that the code under test cannot catch it."""


@pytest.fixture(autouse=True)
def _in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def wake(*_: object) -> None:
        raise HangError

    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_special_files_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with special_files(tmp_path / "data") as names:
        paths = [tmp_path / "data" / name for name in names]
        for path in paths:
            with pytest.raises(DataError, match=path.name) as caught:
                open_image(path)
            assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(DataError, match="is a pipe, not a regular file"):
            open_image(tmp_path / "data" / "pipe.jpg")
        with pytest.raises(DataError, match="is a device, not a regular file"):
            open_image(tmp_path / "data" / "zero.jpg")
        with pytest.raises(DataError, match=r"7,516,192,768 bytes, more than the limit .*data.max_pixels"):
            open_image(tmp_path / "data" / "sparse.jpg")
        assert len(broken_images(paths)) == len(paths)
        assert len(scan_images(paths).broken) == len(paths)
        for path in paths:
            with pytest.raises(DataError):
                content_hashes([path] if path.name not in ("messages.jpg", "events.jpg") else [tmp_path / "none"])


def test_special_files_are_read_as_nothing_or_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with special_files(tmp_path / "data") as names:
        for name in names:
            if not name.startswith("sparse"):
                try:
                    assert read_file(tmp_path / "data" / name) == b""
                except OSError:
                    continue
    with pytest.raises(ValueError, match="null"):
        open_file("a\0b")
    (tmp_path / "a.txt").write_text("\ufeffä\n", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "ä\n"


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert open_image(tmp_path / "b.png").mode == "RGB"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "tar"])
def test_a_table_that_is_a_pipe_or_a_device_is_an_error(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"p.{ending}")
    (tmp_path / f"d.{ending}").symlink_to("/dev/zero")
    (tmp_path / f"k.{ending}").symlink_to("/proc/kmsg")
    for name in "pdk":
        for read in (read_pairs, read_labeled, read_near_misses):
            with pytest.raises(DataError) as caught:
                read(str(tmp_path / f"{name}.{ending}"))
            assert len(str(caught.value).splitlines()) == 1


def test_texts_beside_images_and_lists_that_are_pipes_are_errors(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    draw("red", "circle").save(tmp_path / "photos" / "a.png")
    os.mkfifo(tmp_path / "photos" / "a.txt")
    for read in (read_pairs, read_for_shards):
        with pytest.raises(DataError):
            read(str(tmp_path / "photos"))
    os.mkfifo(tmp_path / "classes.txt")
    for lines in (read_classes, read_templates):
        with pytest.raises(DataError):
            lines(str(tmp_path / "classes.txt"))
    os.mkfifo(tmp_path / "prepared.json")  # beside the data
    assert read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], [["photos/a.png", "red"]]))).captions


def test_hostile_files_among_the_images_of_a_run(recipe: Callable[..., Any], shapes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, content in images().items():
        (data / name).write_bytes(content)
    with special_files(data) as names:
        bad = [*names, *images()]
        rows = [[f"{shapes}/images/{number:02d}.png", f"words {number}"] for number in range(16)]
        rows += [[name, f"bad {number}"] for number, name in enumerate(bad)]
        source = str(write_csv(data / "p.csv", ["image", "caption"], rows))
        clipkit.train(recipe({"data.train": source, "data.max_bad": len(bad), "train.epochs": 1}))
        listed = {Path(row["file"]).name for row in read_lines(tmp_path / "run" / "bad_samples.jsonl")}
        assert listed <= set(bad)
        done = prepare(read_for_shards(source), tmp_path / "out", size=32)
        assert (done.images, len(done.skipped)) == (16, len(bad))
        with pytest.raises(DataError, match="images are missing"):
            read_pairs(source)


@pytest.mark.parametrize("length", [1_000_000, 1_000_001, 20_000_000])
def test_a_caption_as_long_as_a_book_is_an_error(length: int, tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "a.png")
    rows = [["a.png", "red"], ["a.png", "x" * length]]
    source = str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows))
    if length > 1_000_000:
        with pytest.raises(DataError, match=rf"(row 2 has a caption|line 3 has a field) of {length:,} characters"):
            read_pairs(source)
    else:
        assert len(read_pairs(source).captions[1]) == length
