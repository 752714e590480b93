"""Opening of images: files, arrays and PIL images are converted to upright RGB images."""

import base64
import errno
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from clipkit.errors import DataError, one_line
from clipkit.image_formats import (
    RefusedImageError,
    check_opened,
    check_shape,
    most_file_bytes,
    open_by_pillow,
    open_content,
)
from clipkit.opening import UnsuitableFileError, open_file, read_file
from clipkit.pixels import rgb


class Stored(ABC):
    """Base class of images that are not separate local files, e.g. images in an archive or a table.

    `name` and `read_bytes()` work as for a Path. `str(image)` is the location of the image, for messages.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the file, or of the table row, that contains the image."""

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


class Held(Stored):
    """Base class of images from a Python object, e.g. a dataset that creates images on access."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """−1, because the size is unknown."""
        return -1

    @abstractmethod
    def held(self) -> "ImageLike | bytes":
        """Return the image: a path, a PIL image, an array, or the bytes of a file."""


class Changed(Stored):
    """Base class of images that are computed from a source image each time they are read.

    Args:
        source: the source image.
        change: short description of the change, which is appended to the name, e.g. "blur-3".
    """

    __slots__ = ("change", "source")

    def __init__(self, source: Path | Stored, change: str) -> None:
        self.source = source
        self.change = change

    @property
    def name(self) -> str:
        return f"{self.source.name}~{self.change}"

    @property
    def size(self) -> int:
        return size_of(self.source)

    def __str__(self) -> str:
        return f"{self.source}~{self.change}"

    @abstractmethod
    def changed(self, image: Image.Image) -> Image.Image:
        """Return the changed version of `image`, which is the source image in upright RGB."""

    def read_bytes(self) -> bytes:
        content = io.BytesIO()
        self.changed(open_image(self.source)).save(content, "PNG", compress_level=1)
        return content.getvalue()


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

# `open_by_pillow` checks the limit and raises an error; Pillow only warns up to twice the limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(image: ImageLike, draft: int | None = None) -> Image.Image:
    """Open an image as an RGB PIL image, from a file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    The result is upright (EXIF rotation), has a white background instead of transparency, and shows the first frame of
    an animation. Values of more than 8 bits are scaled to 8 bits (docs/data.md).

    Args:
        image: path, stored file, PIL image or array.
        draft: decode a large JPEG at 1/2, 1/4 or 1/8 of its size, with a short side of at least this many pixels. This
            is faster, but the pixels differ slightly. None: decode at full size.

    Raises:
        DataError: the file is missing, not a regular file, too large or damaged; the format or the type is unsupported;
            or one side is more than 200 times as long as the other side.
        MemoryError: there is not enough memory; the image itself may be valid.
    """
    if isinstance(image, Held):
        with _as_data_errors(image):
            return _opened_object(image, draft)
    if isinstance(image, Image.Image):
        with _as_data_errors(None):
            check_opened(image)
            check_shape(image.size)
        return rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            raise DataError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image; "
                "give uint8 values in (H, W), (H, W, 3) or (H, W, 4)"
            )
        with _as_data_errors(None):
            check_shape((image.shape[1], image.shape[0]))
        return rgb(Image.fromarray(image))
    if not isinstance(image, str | Path | Stored):
        raise DataError(f"{kind_of(image)} is not an image; give a path, a PIL image or a uint8 array")
    with _as_data_errors(image), _file_of(image) as file, open_by_pillow(file) as opened:
        width, height = opened.size
        if draft is not None and opened.format == "JPEG" and min(width, height) >= 2 * draft:
            opened.draft(None, (width * draft // min(width, height), height * draft // min(width, height)))
        return rgb(opened)


def _opened_object(image: Held, draft: int | None) -> Image.Image:
    try:
        value = image.held()
        return open_image(InMemory(str(image), value) if isinstance(value, bytes) else value, draft)
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(str(image)) else f"{image}: {message}") from None


def _file_of(image: str | Path | Stored) -> BinaryIO:
    try:
        return io.BytesIO(_content_of(image)) if isinstance(image, Stored) else open_file(image, most_file_bytes())
    except (FileNotFoundError, UnsuitableFileError):
        raise
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise RefusedImageError(
            f"cannot be read ({reason}); check the file or the URL, or remove the rows with this image from the data"
        ) from None


def _content_of(image: Stored) -> bytes:
    most = most_file_bytes()
    if most is not None and image.size > most:
        raise RefusedImageError(f"has {image.size} bytes, more than the limit of {most}; {_SMALLER}")
    return image.read_bytes()


_SMALLER = (
    "make the image smaller, remove the rows with this image from the data, or raise data.max_pixels (in a recipe) or "
    "the environment variable CLIPKIT_MAX_PIXELS"
)
_REPLACE = "replace the file, or remove the rows with this image from the data"


@contextmanager
def _as_data_errors(image: str | Path | Stored | None) -> Iterator[None]:
    name = f"{image}: " if image is not None else ""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except RefusedImageError as error:
        raise DataError(f"{name}{error}") from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name}is over the limit of {Image.MAX_IMAGE_PIXELS} pixels ({one_line(error)[:40]}); {_SMALLER}"
        ) from None
    except UnsuitableFileError as error:
        advice = _SMALLER if error.errno == errno.EFBIG else _REPLACE
        raise DataError(f"{name}{error.strerror}; {advice}") from None
    except FileNotFoundError:
        raise DataError(f"{name}file not found; check the path") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}is not an image that Pillow can read; {_REPLACE}") from None
    # Pillow has about forty decoders, and a broken file can raise almost any error in them.
    except Exception as error:
        raise DataError(f"{name}cannot be decoded ({one_line(error)}); {_REPLACE}") from None


def in_memory(image: Path | Stored) -> InMemory:
    """Read an image file into memory, so that several uses read the file only once.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    with _as_data_errors(image):
        return InMemory(str(image), read_image(image))


def read_image(image: Path | Stored) -> bytes:
    """Return the content of an image file.

    Raises:
        OSError: the file is missing, not a regular file, too large or cannot be read.
    """
    try:
        return _content_of(image) if isinstance(image, Stored) else read_file(image, most_file_bytes())
    except RefusedImageError as error:
        raise UnsuitableFileError(errno.EFBIG, str(error).partition(";")[0], str(image)) from None


def kind_of(thing: object) -> str:
    """Return the type of an object with an article for messages, e.g. "a list"."""
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def upright_size(content: bytes) -> tuple[int, int]:
    """Return the width and height of an image file's content after EXIF rotation, without decoding the pixels."""
    with open_content(content) as opened:
        width, height = opened.size
        try:
            is_rotated = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # invalid EXIF data is ignored, as in `clipkit.pixels`
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


def size_of(image: str | Path | Stored) -> int:
    """Return the size of an image file in bytes; -1 if it is missing or unknown."""
    if isinstance(image, Stored):
        return image.size
    try:
        return os.stat(image).st_size  # noqa: PTH116 - a million paths as strings take seconds, not half a minute
    except (OSError, ValueError):  # invalid file name
        return -1
