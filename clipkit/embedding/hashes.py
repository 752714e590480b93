"""Content hashes of images. A process hashes a file again only if the file has changed."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit.errors import DataError, one_line
from clipkit.images import Held, ImageLike, open_image, read_image

_PART = 8192  # maximum number of images that wait in the thread pool, since each waiting task needs memory
_REMEMBERED = 1 << 18
# A file that changed more recently than this could change again with the same time stamp, so its hash is not cached.
_RECENT = 2_000_000_000  # nanoseconds


def content_hashes(images: Sequence[ImageLike]) -> list[bytes]:
    """Return the SHA-256 hash of each image: of the file's bytes, or of the pixels of an image in memory.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = (images[start : start + _PART] for start in range(0, len(images), _PART))
        return [digest for part in parts for digest in pool.map(_content_hash, part)]


def _content_hash(image: ImageLike) -> bytes:
    if isinstance(image, Image.Image | np.ndarray | Held):
        decoded = open_image(image)  # RGB and rotated according to EXIF, as for a tower
        return hashlib.sha256(f"{decoded.size} ".encode() + decoded.tobytes()).digest()
    image = Path(image) if isinstance(image, str) else image
    try:
        if isinstance(image, Path):
            about = image.stat()
            if time.time_ns() - about.st_ctime_ns > _RECENT:
                return _remembered(str(image), about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns)
        return hashlib.sha256(read_image(image)).digest()
    except (OSError, ValueError) as error:  # ValueError: an invalid path, e.g. with a null character
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{image}: cannot be read ({reason}); check the path") from None


@lru_cache(maxsize=_REMEMBERED)
def _remembered(path: str, *_: int) -> bytes:
    """Return the SHA-256 hash of a file.

    The further arguments (device, inode, size, time of the last change) are part of the key of `lru_cache`.
    """
    return hashlib.sha256(read_image(Path(path))).digest()
