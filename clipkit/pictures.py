"""Opening pictures: whatever a user holds becomes an upright RGB picture."""

import base64
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from clipkit.errors import DataError, one_line


class Stored(ABC):
    """A picture's file inside something larger, as a tar or a table; named and read as a Path is.

    `str` of it says where it lies, for a person.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The file's own name, or its row's."""

    @property
    @abstractmethod
    def size(self) -> int:
        """In bytes; -1 where it is not known."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The file.

        Raises:
            OSError: it cannot be read.
        """


Picture = str | Path | Stored | Image.Image | np.ndarray[Any, Any]

# The limit is ours to check, and an error; Pillow's own would be a warning up to twice of it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MAX_PIXELS = 178_956_970
"""Pillow's own limit for an error."""
# A model's short side is a few hundred pixels, to which a strip of one pixel by 60,000 is enlarged: to gigabytes.
_LONGEST = 200


Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@contextmanager
def pixel_limit(most: int) -> Iterator[None]:
    """Within, this process refuses to decode pictures of more pixels, which may be made to fill the memory."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_picture(picture: Picture, draft: int | None = None) -> Image.Image:
    """An RGB PIL image from a file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    EXIF rotation is applied; transparency is laid on white; of an animation the first frame is taken; 16 bits become 8.

    Args:
        picture: what it is.
        draft: decode a JPEG to a half, a quarter or an eighth of its size while its short side keeps so many pixels,
            which is faster and not quite the same.

    Raises:
        DataError: the file is missing or cannot be decoded, it is something else, or it is a strip that is more than
            200 times as long as wide.
    """
    if isinstance(picture, Image.Image):
        _check_shape(picture.size)
        return _rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise DataError(
                f"an array of shape {picture.shape} and type {picture.dtype} is not a picture: "
                "give uint8 values in (H, W), (H, W, 3) or (H, W, 4)"
            )
        _check_shape((picture.shape[1], picture.shape[0]))
        return _rgb(Image.fromarray(picture))
    if not isinstance(picture, str | Path | Stored):
        raise DataError(f"{kind_of(picture)} is not a picture: give a path, a PIL image or a uint8 array")
    try:
        file = io.BytesIO(picture.read_bytes()) if isinstance(picture, Stored) else picture
        with Image.open(file, formats=_formats()) as opened:
            width, height = opened.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{width} × {height} pixels")
            _check_shape(opened.size, f"{picture}: ")
            if draft is not None and opened.format == "JPEG" and min(width, height) >= 2 * draft:
                opened.draft(None, (width * draft // min(width, height), height * draft // min(width, height)))
            return _rgb(opened)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{picture}: is over the limit of {Image.MAX_IMAGE_PIXELS} pixels ({one_line(error)[:40]}); drop its "
            "rows, or raise data.max_pixels in a recipe, else PIL.Image.MAX_IMAGE_PIXELS, where it is to be trusted"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{picture}: there is no such picture; check the path") from None
    except UnidentifiedImageError:
        raise DataError(f"{picture}: is not a picture that Pillow can read; replace it or drop its rows") from None
    # Pillow has some forty decoders, and each meets a broken file with whatever its arithmetic comes to.
    except Exception as error:
        said = one_line(error) or type(error).__name__
        raise DataError(f"{picture}: cannot be decoded ({said}); replace the file or drop its rows") from None


def kind_of(thing: object) -> str:
    """What something is, for a message about what it should have been."""
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _check_shape(size: tuple[int, int], name: str = "") -> None:
    width, height = size
    if max(size) > _LONGEST * min(size):
        raise DataError(
            f"{name}a picture of {width} × {height} pixels is a strip, more than {_LONGEST} times as long as wide; "
            "crop it or drop its rows"
        )


def upright_size(content: bytes) -> tuple[int, int]:
    """Width and height after EXIF rotation of the picture in a file's bytes, without decoding it."""
    with Image.open(io.BytesIO(content), formats=_formats()) as opened:
        width, height = opened.size
        try:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # as in `_rgb`
            turned = False
    return (height, width) if turned else (width, height)


DATA_URI = "data:image/jpeg;base64,"


def as_data_uri(picture: Picture, side: int) -> str:
    """A JPEG of it at most `side` pixels wide and high, in a string that HTML takes for a file.

    Raises:
        DataError: it cannot be decoded.
    """
    small = open_picture(picture)
    if isinstance(picture, Image.Image):
        small = small.copy()
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return DATA_URI + base64.b64encode(encoded.getvalue()).decode()


@cache
def _formats() -> list[str]:
    """Pillow's, but for the one that is a program, which another program would run; the usual ones are tried first."""
    Image.init()
    usual = ["JPEG", "PNG", "WEBP"]
    return usual + [name for name in Image.ID if name not in (*usual, "EPS")]


def size_of(picture: Path | Stored) -> int:
    """Bytes of its file; -1 where there is none."""
    if isinstance(picture, Stored):
        return picture.size
    try:
        return picture.stat().st_size
    except (OSError, ValueError):  # a name that no file can have
        return -1


def _rgb(picture: Image.Image) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(picture)
    except Exception:  # what EXIF says may be broken in as many ways as the rest, and the picture still be whole
        upright = picture
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


def _of_16_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, which conversion alone would cut off at 255."""
    values = np.asarray(picture).astype(np.int64)
    return Image.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))
