"""Opening images: whatever a user holds becomes an upright RGB image."""

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
    """An image's file inside something larger, as a tar or a table; named and read as a Path is.

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


ImageLike = str | Path | Stored | Image.Image | np.ndarray[Any, Any]

# The limit is ours to check, and an error; Pillow's own would be a warning up to twice of it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MAX_PIXELS = 178_956_970
"""Pillow's own limit for an error."""
# A model's short side is a few hundred pixels, to which a strip of one pixel by 60,000 is enlarged: to gigabytes.
_LONGEST = 200


Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@contextmanager
def pixel_limit(most: int) -> Iterator[None]:
    """Within, this process refuses to decode images of more pixels, which may be made to fill the memory."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_image(image: ImageLike, draft: int | None = None) -> Image.Image:
    """An RGB PIL image from a file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    EXIF rotation is applied; transparency is laid on white; of an animation the first frame is taken; 16 bits become 8.

    Args:
        image: what it is.
        draft: decode a JPEG to a half, a quarter or an eighth of its size while its short side keeps so many pixels,
            which is faster and not quite the same.

    Raises:
        DataError: the file is missing or cannot be decoded, it is something else, or it is a strip that is more than
            200 times as long as wide.
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
    try:
        file = io.BytesIO(image.read_bytes()) if isinstance(image, Stored) else image
        with Image.open(file, formats=_formats()) as opened:
            width, height = opened.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{width} × {height} pixels")
            _check_shape(opened.size, f"{image}: ")
            if draft is not None and opened.format == "JPEG" and min(width, height) >= 2 * draft:
                opened.draft(None, (width * draft // min(width, height), height * draft // min(width, height)))
            return _rgb(opened)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{image}: is over the limit of {Image.MAX_IMAGE_PIXELS} pixels ({one_line(error)[:40]}); drop its "
            "rows, or raise data.max_pixels in a recipe, else PIL.Image.MAX_IMAGE_PIXELS, where it is to be trusted"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{image}: there is no such image; check the path") from None
    except UnidentifiedImageError:
        raise DataError(f"{image}: is not an image that Pillow can read; replace it or drop its rows") from None
    # Pillow has some forty decoders, and each meets a broken file with whatever its arithmetic comes to.
    except Exception as error:
        said = one_line(error) or type(error).__name__
        raise DataError(f"{image}: cannot be decoded ({said}); replace the file or drop its rows") from None


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
            f"{name}an image of {width} × {height} pixels is a strip, more than {_LONGEST} times as long as wide; "
            "crop it or drop its rows"
        )


def upright_size(content: bytes) -> tuple[int, int]:
    """Width and height after EXIF rotation of the image in a file's bytes, without decoding it."""
    with Image.open(io.BytesIO(content), formats=_formats()) as opened:
        width, height = opened.size
        try:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # as in `_rgb`
            turned = False
    return (height, width) if turned else (width, height)


DATA_URI = "data:image/jpeg;base64,"


def as_data_uri(image: ImageLike, side: int) -> str:
    """A JPEG of it at most `side` pixels wide and high, in a string that HTML takes for a file.

    Raises:
        DataError: it cannot be decoded.
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
    """Pillow's, but for the one that is a program, which another program would run; the usual ones are tried first."""
    Image.init()
    usual = ["JPEG", "PNG", "WEBP"]
    return usual + [name for name in Image.ID if name not in (*usual, "EPS")]


def size_of(image: Path | Stored) -> int:
    """Bytes of its file; -1 where there is none."""
    if isinstance(image, Stored):
        return image.size
    try:
        return image.stat().st_size
    except (OSError, ValueError):  # a name that no file can have
        return -1


def _rgb(image: Image.Image) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # what EXIF says may be broken in as many ways as the rest, and the image still be whole
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
    """Grey of 16 bits, which conversion alone would cut off at 255."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))
