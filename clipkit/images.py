"""Opening images: files, arrays and PIL images become upright RGB images."""

import base64
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from clipkit.errors import DataError, one_line


class Stored(ABC):
    """Image file that is stored in an archive, a table or elsewhere; it has the `name` and `read_bytes` of a Path.

    Its `str` is its location, for messages.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the file or of its row."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Size in bytes; -1 if unknown."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: the file cannot be read.
        """


@dataclass(frozen=True, slots=True)
class InMemory(Stored):
    """Image file in memory."""

    location: str
    content: bytes

    @property
    def name(self) -> str:
        return self.location.rpartition("/")[2]

    @property
    def size(self) -> int:
        return len(self.content)

    def __str__(self) -> str:
        return self.location

    def read_bytes(self) -> bytes:
        return self.content


ImageLike = str | Path | Stored | Image.Image | np.ndarray[Any, Any]

# `open_image` checks the limit and raises an error; Pillow only warns up to twice the limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MAX_PIXELS = 178_956_970
"""Default limit of Pillow."""
# The short side is resized to a few hundred pixels, so that a strip of 1 × 60,000 pixels would need gigabytes.
_MOST_ELONGATED = 200


Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@contextmanager
def pixel_limit(most: int) -> Iterator[None]:
    """Context in which this process refuses to decode images with more pixels than `most`."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_image(image: ImageLike, draft: int | None = None) -> Image.Image:
    """Return an RGB PIL image from a file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    EXIF rotation is applied, transparency is put on white, the first frame of an animation is used, and 16 bits are
    reduced to 8.

    Args:
        image: path, stored file, PIL image or array.
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size if its short side keeps at least this many pixels. Faster,
            but the pixels differ slightly.

    Raises:
        DataError: the file is missing or cannot be decoded, the type is unsupported, or one side is more than 200
            times as long as the other.
    """
    if isinstance(image, Image.Image):
        _check_shape(image.size)
        return _rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            raise DataError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image: "
                "give uint8 values in (H, W), (H, W, 3) or (H, W, 4)"
            )
        _check_shape((image.shape[1], image.shape[0]))
        return _rgb(Image.fromarray(image))
    if not isinstance(image, str | Path | Stored):
        raise DataError(f"{kind_of(image)} is not an image: give a path, a PIL image or a uint8 array")
    with _as_data_errors(image):
        file = io.BytesIO(image.read_bytes()) if isinstance(image, Stored) else image
        with Image.open(file, formats=_formats()) as opened:
            width, height = opened.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{width} × {height} pixels")
            _check_shape(opened.size, f"{image}: ")
            if draft is not None and opened.format == "JPEG" and min(width, height) >= 2 * draft:
                opened.draft(None, (width * draft // min(width, height), height * draft // min(width, height)))
            return _rgb(opened)


@contextmanager
def _as_data_errors(image: str | Path | Stored) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{image}: is over the limit of {Image.MAX_IMAGE_PIXELS} pixels ({one_line(error)[:40]}); drop its "
            "rows or, if you trust the file, raise data.max_pixels in a recipe, or PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{image}: there is no such image; check the path") from None
    except UnidentifiedImageError:
        raise DataError(f"{image}: is not an image that Pillow can read; replace it or drop its rows") from None
    # Pillow has about forty decoders, and a broken file can raise almost any error in them.
    except Exception as error:
        raise DataError(f"{image}: cannot be decoded ({one_line(error)}); replace the file or drop its rows") from None


def in_memory(image: Path | Stored) -> InMemory:
    """Read an image file once, for several uses.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    with _as_data_errors(image):
        return InMemory(str(image), image.read_bytes())


def kind_of(thing: object) -> str:
    """Return the type of an object with its article, as "a list", for messages."""
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _check_shape(size: tuple[int, int], name: str = "") -> None:
    width, height = size
    if max(size) > _MOST_ELONGATED * min(size):
        raise DataError(
            f"{name}an image of {width} × {height} pixels is more than {_MOST_ELONGATED} times as long as wide; "
            "crop it or drop its rows"
        )


def upright_size(content: bytes) -> tuple[int, int]:
    """Return width and height after EXIF rotation of an image file, without decoding the pixels."""
    with Image.open(io.BytesIO(content), formats=_formats()) as opened:
        width, height = opened.size
        try:
            is_rotated = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # as in `_rgb`
            is_rotated = False
    return (height, width) if is_rotated else (width, height)


DATA_URI = "data:image/jpeg;base64,"


def as_data_uri(image: ImageLike, side: int) -> str:
    """Return a JPEG of at most `side` × `side` pixels as a data URI for HTML.

    Raises:
        DataError: the image cannot be decoded.
    """
    small = open_image(image)
    if isinstance(image, Image.Image):
        small = small.copy()
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return DATA_URI + base64.b64encode(encoded.getvalue()).decode()


@cache
def _formats() -> list[str]:
    """Return Pillow's formats, common ones first, without EPS, which would run an external program."""
    Image.init()
    usual = ["JPEG", "PNG", "WEBP"]
    return usual + [name for name in Image.ID if name not in (*usual, "EPS")]


def size_of(image: str | Path | Stored) -> int:
    """Return the size of an image file in bytes; -1 if it is missing or unknown."""
    if isinstance(image, Stored):
        return image.size
    try:
        return os.stat(image).st_size  # noqa: PTH116 - a million paths as strings take seconds, not half a minute
    except (OSError, ValueError):  # invalid file name
        return -1


def _rgb(image: Image.Image) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data in an otherwise sound image
        upright = image
    if upright.mode == "RGB":
        upright.load()
        return upright
    if upright.mode.startswith("I"):
        return _of_16_bits(upright).convert("RGB")
    if "A" in upright.mode or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits; a plain conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))
