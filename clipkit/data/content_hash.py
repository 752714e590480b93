"""Hash of a dataset's images, to detect changes between two commands."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipkit.data.sequences import evenly_spaced
from clipkit.data.sources.remote import Remote
from clipkit.errors import DataError
from clipkit.images import Stored
from clipkit.opening import open_file

_MOST_FILES = 10_000
_MOST_STORED = 1_000  # images in archives and tables, which are read completely
_PART = 4096  # bytes at the beginning and at the end of a file; encoders rarely keep both when an image changes
_THREADS = 8


def content_hash(images: Sequence[Path | Stored]) -> str:
    """Return a hash of the images' contents, independent of file names and modification times.

    Only a sample of a large dataset is read:
    - Image files: the size and the first and last 4 KiB of up to 10,000 evenly spaced files.
    - Images in archives and tables: the whole content of up to 1,000 images.
    - Images at URLs are ignored.
    """
    sampled = [images[position] for position in evenly_spaced(len(images), _MOST_FILES)]
    stored = [image for image in sampled if isinstance(image, Stored) and not isinstance(image, Remote)]
    chosen: list[Path | Stored] = [image for image in sampled if not isinstance(image, Stored)]
    chosen += [stored[position] for position in evenly_spaced(len(stored), _MOST_STORED)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(_content, chosen):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _content(image: Path | Stored) -> bytes:
    """Return the bytes of an image that `content_hash` includes; b"" for an unreadable image."""
    try:
        if isinstance(image, Stored):
            return image.read_bytes()
        with open_file(image) as file:
            first = file.read(_PART)
            size = file.seek(0, 2)
            file.seek(max(0, size - _PART))
            return first + file.read(_PART) + size.to_bytes(8, "little")
    except (OSError, ValueError, DataError):
        return b""
