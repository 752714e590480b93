"""Formats that start programs or contain other formats are never decoded, and no image fills the memory."""

import io
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit.data import broken_images, read_pairs
from clipkit.data.checks.scan import scan_images
from clipkit.data.prepare import prepare, read_for_shards
from clipkit.data.preview import preview
from clipkit.errors import DataError
from clipkit.image_formats import FORMATS, MAX_PIXELS, open_content, pixel_limit
from clipkit.images import InMemory, as_data_uri, in_memory, open_image, upright_size
from clipkit.recipe import steps_of
from tests.conftest import draw, write_csv
from tests.security.hostile import EPS, images, iptc, no_processes, png, saved

__all__ = ["no_processes"]
HOSTILE = images()


def test_pillow_alone_would_start_a_program(no_processes: Callable[[], list[Any]]) -> None:
    with pytest.raises(Exception, match="."), Image.open(io.BytesIO(iptc(EPS))) as opened:
        opened.load()
    assert no_processes()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_quickly(name: str, tmp_path: Path, no_processes: Callable[[], list[Any]]) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for image in (tmp_path / name, InMemory(name, HOSTILE[name])):
        with pytest.raises(DataError, match=name) as caught:
            open_image(image)
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(Exception, match="."):
            upright_size(HOSTILE[name])
        with pytest.raises(DataError):
            as_data_uri(image, 64)
    assert list(scan_images([tmp_path / name]).broken) == [0]
    assert not no_processes()
    assert time.monotonic() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_no_command_on_data_starts_a_program(tmp_path: Path, no_processes: Callable[[], list[Any]]) -> None:
    for name, content in HOSTILE.items():
        (tmp_path / name).write_bytes(content)
    draw("red", "circle").save(tmp_path / "a.png")
    rows = [["a.png", "red"], *([name, f"words of {name}"] for name in HOSTILE)]
    source = str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows))
    pairs = read_for_shards(source)
    assert len(broken_images(pairs.images)) == len(HOSTILE)
    done = prepare(pairs, tmp_path / "out", size=32)
    assert (done.images, len(done.skipped)) == (1, len(HOSTILE))
    with pytest.raises(DataError):
        preview(read_pairs(source).take(np.array([1])), steps_of("moco"), safe=False)
    assert not no_processes()


def test_an_opened_image_of_another_format_is_refused(no_processes: Callable[[], list[Any]]) -> None:
    for content in (EPS, iptc(EPS), iptc(saved("JPEG"))):
        with Image.open(io.BytesIO(content)) as opened, pytest.raises(DataError, match="EPS|IPTC"):
            open_image(opened)
    assert not no_processes()
    assert open_image(Image.new("RGB", (4, 4))).size == (4, 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO",
                                  "DIB", "PCX", "QOI", "SGI", "MPO"])  # fmt: skip
def test_common_formats_are_read(kind: str, tmp_path: Path) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    content = saved(kind, sizes=[(8, 8)]) if kind == "ICO" else saved(kind)
    (tmp_path / "a.jpg").write_bytes(content)
    opened = open_image(tmp_path / "a.jpg")
    assert kind in FORMATS
    assert (opened.mode, opened.size) == ("RGB", (8, 8))
    assert np.abs(np.asarray(opened, dtype=int) - [255, 0, 0]).max() < 12
    with open_content(content) as direct:
        assert direct.format in FORMATS


def test_a_pixel_limit_is_changeable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(400, 300))
    with pixel_limit(100_000), pytest.raises(DataError, match=r"over the limit of 100000 pixels .*data.max_pixels"):
        open_image(tmp_path / "a.png")
    with pixel_limit(120_000):
        assert open_image(tmp_path / "a.png").size == (400, 300)


def test_a_blank_image_is_read_if_it_is_small_or_the_limit_is_higher(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(png(4960, 7016, 0))
    assert open_image(tmp_path / "page.png").size == (4960, 7016)
    (tmp_path / "bomb.png").write_bytes(png(9000, 8000, 0))
    with pytest.raises(DataError, match=r"9000 × 8000 pixels .*CLIPKIT_MAX_PIXELS"):
        open_image(tmp_path / "bomb.png")
    with pixel_limit(2 * MAX_PIXELS):
        assert open_image(tmp_path / "bomb.png").size == (9000, 8000)


@pytest.mark.parametrize("kind", ["LA", "RGBA", "P", "I;16"])
def test_strips_of_a_large_image_give_the_same_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (65, 63, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(kind if kind != "I;16" else "L")
    if kind == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 255)
    if kind == "P":
        image.info["transparency"] = 3
    content = io.BytesIO()
    image.save(content, "PNG")
    whole = np.asarray(open_image(InMemory("a.png", content.getvalue())))
    monkeypatch.setattr("clipkit.pixels._WHOLE", 1000)
    assert (np.asarray(open_image(InMemory("a.png", content.getvalue()))) == whole).all()


def test_a_lack_of_memory_is_not_the_fault_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    draw("red", "circle").save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        open_image(tmp_path / "a.png")
    with pytest.raises(MemoryError):
        scan_images([tmp_path / "a.png"])
    with pytest.raises(MemoryError):
        broken_images([tmp_path / "a.png"])


def test_a_file_is_not_larger_than_the_largest_image(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(saved("JPEG"))
        file.truncate(20 << 20)
    with pixel_limit(100), pytest.raises(DataError, match=r"has 20,971,520 bytes, more than the limit of 16,778,016"):
        in_memory(tmp_path / "a.jpg")
    with pixel_limit(1 << 20):
        assert open_image(tmp_path / "a.jpg").size == (8, 8)
