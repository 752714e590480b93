"""Resizing and encoding images for shards."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.data.encoded import encoded
from clipkit.images import InMemory, open_image
from tests.data.conftest import noise
from tests.test_pixels import colored, png


def test_resizing_equals_that_of_preprocessing(tmp_path: Path) -> None:
    from torchvision.transforms.v2 import functional as F

    noise(97, 61).save(tmp_path / "a.png")
    small = Image.open(io.BytesIO(encoded(tmp_path / "a.png", 32, lossless=True).content))
    expected = F.resize(open_image(tmp_path / "a.png"), [32], interpolation=F.InterpolationMode.BICUBIC)
    assert np.array_equal(small, expected)


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
        ("gray.jpg", lambda path: noise(20, 30).convert("L").save(path), False),
        ("alpha.png", lambda path: noise(20, 30).convert("RGBA").save(path), False),
        ("one_color_clear.png", lambda path: noise(20, 30).save(path, transparency=(1, 2, 3)), False),
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


def test_metadata_is_removed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    noise(40, 30).save(tmp_path / "a.jpg", exif=exif, comment=b"where I live", icc_profile=b"where I live")
    for lossless in (False, True):
        assert b"where I live" not in encoded(tmp_path / "a.jpg", 24, lossless=lossless).content


def test_a_png_of_16_bits_is_encoded_again() -> None:
    """Other readers would take its upper bytes, which are black."""
    values = colored(12)
    kept = encoded(png(values, 16, 2), 256, lossless=True)
    assert (np.asarray(open_image(InMemory("x.png", kept.content))) == values >> 4).all()
    assert (np.asarray(Image.open(io.BytesIO(kept.content))) == values >> 4).all()
