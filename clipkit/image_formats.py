"""Opening of image files with Pillow, limited to allowed formats and to a maximum number of pixels.

Formats that start programs (EPS starts Ghostscript) or contain a file of any other format (IPTC) are not allowed.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

from PIL import Image, ImageFile

from clipkit.errors import UserError

# Formats whose decoders read the pixels of their own file and nothing else. To allow another one, check its plugin for
# subprocess and for Image.open. Formats after PNM belong to other packages; they are used if such a package has
# registered its format with Pillow.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "TGA", "ICO", "DIB", "PCX", "QOI",
    "SGI", "HEIF", "JXL",
)  # fmt: skip

MAX_PIXELS = 178_956_970
"""Maximum number of pixels of an image if CLIPKIT_MAX_PIXELS is not set: the default limit of Pillow."""
_LIMIT = "CLIPKIT_MAX_PIXELS"
# A file may be as large as its largest image with 16 bits in four channels, plus metadata.
_BYTES_PER_PIXEL = 8
_METADATA = 1 << 24
# An image above a third of the limit, with more than 500 pixels per byte of its file, is blank or malicious (made to
# fill the memory). JPEG files have at most 170 pixels per byte, drawings a few dozen.
_PIXELS_PER_BYTE = 500
# The short side is resized to a few hundred pixels, so that a strip of 1 × 60,000 pixels would need gigabytes.
MOST_ELONGATED = 200


class RefusedImageError(Exception):
    """Error for an image that is refused before its pixels are decoded; the message is the reason."""


def _limit_at_start() -> int:
    given = os.environ.get(_LIMIT) or str(MAX_PIXELS)
    if not (given.isascii() and given.isdecimal() and len(given) <= 18 and int(given)):
        raise UserError(
            f"{_LIMIT} is {given[:80]!r}, not a number of pixels; set the environment variable to a whole "
            f"number above 0, or unset the variable to use {MAX_PIXELS}"
        )
    return int(given)


Image.MAX_IMAGE_PIXELS = _limit_at_start()


@contextmanager
def pixel_limit(most: int) -> Iterator[None]:
    """Context in which this process refuses to decode images with more pixels than `most`."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def most_file_bytes() -> int | None:
    """Return the maximum size of an image file in bytes, derived from the pixel limit; None: unlimited."""
    return None if Image.MAX_IMAGE_PIXELS is None else _BYTES_PER_PIXEL * Image.MAX_IMAGE_PIXELS + _METADATA


def open_by_pillow(file: BinaryIO) -> Image.Image:
    """Open an image file without decoding the pixels; close the image after use.

    Raises:
        RefusedImageError: the image has too many pixels, or one side is more than 200 times as long as the other.
        UnidentifiedImageError: the format is unknown or not allowed.
        Exception: the file is damaged.
    """
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(0)
    _check_icon(file, size)
    file.seek(0)
    opened = Image.open(file, formats=_formats())
    try:
        check_opened(opened)
        _check_pixels(opened.size, size)
        check_shape(opened.size)
    except RefusedImageError:
        opened.close()
        raise
    return opened


def open_content(content: bytes) -> Image.Image:
    """Open an image from the content of its file, with the checks of `open_by_pillow`."""
    return open_by_pillow(io.BytesIO(content))


def check_opened(image: Image.Image) -> None:
    """Check the format of an image that Pillow has opened but not decoded.

    Raises:
        RefusedImageError: the format is not allowed, or the image is closed.
    """
    pixels = vars(image).get("_im", vars(image).get("im"))  # "im" in Pillow 10
    if type(pixels).__name__ == "DeferredError":
        raise RefusedImageError("is closed; give an open image")
    if isinstance(image, ImageFile.ImageFile) and getattr(image, "_im", None) is None and image.format not in FORMATS:
        raise RefusedImageError(
            f"is in the format {image.format}, which is not supported; convert the image to PNG or JPEG"
        )


def check_shape(size: tuple[int, int]) -> None:
    """Check that an image has pixels and is not extremely long and narrow.

    Raises:
        RefusedImageError: a side is 0, or one side is more than 200 times as long as the other.
    """
    width, height = size
    if not min(size):
        raise RefusedImageError(
            f"an image of {width} × {height} pixels is empty; remove the rows with this image from the data"
        )
    if max(size) > MOST_ELONGATED * min(size):
        raise RefusedImageError(
            f"an image of {width} × {height} pixels is more than {MOST_ELONGATED} times as long as wide; crop "
            "the image, or remove the rows with this image from the data"
        )


def _check_pixels(size: tuple[int, int], file_bytes: int) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if most is None:
        return
    pixels = size[0] * size[1]
    advice = (
        "remove the rows with this image from the data or, if you trust the file, raise data.max_pixels (in a recipe), "
        f"the environment variable {_LIMIT}, or PIL.Image.MAX_IMAGE_PIXELS"
    )
    if pixels > most:
        raise RefusedImageError(f"is over the limit of {most} pixels ({size[0]} × {size[1]} pixels); {advice}")
    if 3 * pixels > most and pixels > _PIXELS_PER_BYTE * file_bytes > 0 and pixels > MAX_PIXELS // 3:
        raise RefusedImageError(
            f"has {size[0]} × {size[1]} pixels in only {file_bytes} bytes, as if the file was made to exhaust "
            f"the memory; {advice}"
        )


def _check_icon(file: BinaryIO, size: int) -> None:
    """Check the sizes of the images in an ICO file, before Pillow decodes the largest image."""
    if file.read(4) != b"\0\0\1\0":
        return
    (count,) = struct.unpack("<H", file.read(2).ljust(2, b"\0"))
    entries = file.read(16 * count)
    for start in range(0, len(entries) - 15, 16):
        (offset,) = struct.unpack_from("<I", entries, start + 12)
        file.seek(offset)
        head = file.read(24).ljust(24, b"\0")
        shape = (
            struct.unpack_from(">II", head, 16) if head.startswith(b"\x89PNG") else struct.unpack_from("<ii", head, 4)
        )
        _check_pixels((abs(shape[0]), abs(shape[1])), size)


@cache
def _formats() -> list[str]:
    """Return the allowed formats that the installed Pillow supports, the most common first."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
