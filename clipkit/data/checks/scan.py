"""Scan of images, which are opened once to measure them and to make hashes and thumbnails."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from clipkit.data.sources.remote import fetch_ahead
from clipkit.errors import DataError, one_line
from clipkit.extras import check_extra
from clipkit.image_formats import RefusedImageError
from clipkit.images import InMemory, Stored, open_image, read_image, upright_size
from clipkit.opening import UnsuitableFileError

THUMBNAIL_SIDE = 8
"""Side of a thumbnail in pixels."""
MISSING = "the file does not exist"
"""Reason why an image whose file is missing cannot be opened."""
EMPTY = "the file is empty"
# JPEG files are decoded at a reduced size, which is several times faster; hashes use 32 pixels a side.
_DRAFT = 64
# Number of images submitted to the threads at once; it is limited because waiting tasks need memory.
_CHUNK = 4096
# Variation (out of 255) below which the perceptual hash of a thumbnail would only be noise.
_FLAT = 2.0
# Share of the brightest and of the darkest pixels that is ignored; they may be a date stamp or a defect.
_IGNORED = 0.001


@dataclass(frozen=True)
class ImageScan:
    """Measurements of N images: sizes, hashes and thumbnails.

    Unknown values, e.g. of a broken image, are 0 (-1 for the file size).
    """

    broken: dict[int, str]
    """Reason why an image cannot be opened, by position."""
    contents: NDArray[np.void]
    """(N,) first 16 bytes of each file's SHA-256; zeros for a file that cannot be read."""
    hashes: NDArray[np.uint64]
    """(N,) perceptual hashes; 0 for an image of one color."""
    thumbnails: NDArray[np.uint8]
    """(N, 8, 8, 3) thumbnails: the images resized to a square."""
    sizes: NDArray[np.int32]
    """(N, 2) width and height in pixels after EXIF rotation."""
    file_bytes: NDArray[np.int64]
    """(N,) file sizes in bytes; -1 for a file that cannot be read."""
    spreads: NDArray[np.uint8]
    """(N,) range of pixel values (0 to 255) in the channel with the largest range; 0.1 % at both ends is ignored."""

    def __len__(self) -> int:
        return len(self.hashes)

    def followed_by(self, other: "ImageScan") -> "ImageScan":
        """Concatenate this scan and another scan."""
        return ImageScan(
            self.broken | {len(self) + position: reason for position, reason in other.broken.items()},
            np.concatenate([self.contents, other.contents]),
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.thumbnails, other.thumbnails]),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.file_bytes, other.file_bytes]),
            np.concatenate([self.spreads, other.spreads]),
        )


def scan_images(images: Sequence[Path | Stored], workers: int | None = None, name: str = "images") -> ImageScan:
    """Open each image once, and return sizes, hashes and thumbnails.

    Args:
        images: N images.
        workers: threads; None: one per core, at most 16.
        name: label of the progress bar.

    Raises:
        DataError: the library imagehash is not installed.

    Example:
        >>> scan_images([]).sizes.shape
        (0, 2)
    """
    count = len(images)
    if count:
        check_extra("data", ["imagehash"], DataError)
    scan = ImageScan(
        {},
        np.zeros(count, "V16"),
        np.zeros(count, np.uint64),
        np.zeros((count, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8),
        np.zeros((count, 2), np.int32),
        np.full(count, -1, np.int64),
        np.zeros(count, np.uint8),
    )
    threads = workers or min(16, os.cpu_count() or 1)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=count, desc=name, unit="", disable=None, leave=False) as bar,
    ):
        # Pillow warns about unusual metadata in files that it then opens correctly.
        warnings.simplefilter("ignore")
        for start in range(0, count, _CHUNK):
            positions = range(start, min(start + _CHUNK, count))
            fetch_ahead(images[start : start + _CHUNK])
            reasons = pool.map(lambda position: _scan_one(images[position], position, scan), positions)
            for position, reason in zip(positions, reasons, strict=True):
                if reason is not None:
                    scan.broken[position] = reason
                bar.update()
    return scan


def _scan_one(image: Path | Stored, position: int, scan: ImageScan) -> str | None:
    """Open an image, and write its measurements to the row `position` of the scan.

    Return None, or the reason why the image cannot be opened.
    """
    from imagehash import phash  # imported here because it imports SciPy, which loader workers do not need

    try:
        content = read_image(image)
    except FileNotFoundError:
        return MISSING
    except MemoryError:
        raise
    except UnsuitableFileError as error:
        return str(error.strerror)
    except Exception as error:  # file systems, archives and networks raise errors of many kinds
        return f"cannot be read ({one_line(error)})"
    scan.file_bytes[position] = len(content)
    scan.contents[position] = hashlib.sha256(content).digest()[:16]
    if not content:
        return EMPTY
    try:
        size = upright_size(content)
        opened = open_image(InMemory(str(image), content), draft=_DRAFT)
        thumbnail = np.asarray(opened.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX))
        bits = phash(opened).hash
    except (DataError, RefusedImageError) as error:
        return _reason(str(image), str(error), content)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of many kinds; one image must not end the check
        return _reason(str(image), f"cannot be decoded ({one_line(error)})", content)
    scan.sizes[position] = size
    scan.thumbnails[position] = thumbnail
    scan.spreads[position] = _spread(opened)
    if thumbnail.std(axis=(0, 1)).max() >= _FLAT:
        scan.hashes[position] = np.packbits(bits).view(">u8")[0]
    return None


def _spread(image: Image.Image) -> int:
    """Return the range of the pixel values, in the channel with the largest range.

    The lowest and highest 0.1 % of the values are ignored.
    """
    counts = np.cumsum(np.array(image.histogram()).reshape(3, 256), axis=1)
    pixels = image.width * image.height
    lowest = (counts > pixels * _IGNORED).argmax(axis=1)
    highest = (counts >= pixels * (1 - _IGNORED)).argmax(axis=1)
    return int((highest - lowest).max())


def _reason(image: str, message: str, content: bytes) -> str:
    if content.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image"
    return message.removeprefix(f"{image}: ").partition("; ")[0]
