"""One pass over images: of each a few hundred bytes by which to know it again, never its pixels."""

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
from tqdm import tqdm

from clipkit.errors import DataError, one_line
from clipkit.images import Stored, open_image, upright_size

SIDE = 8
"""Of the miniature in pixels."""
GONE = "there is no such file"
"""Why an image cannot be opened whose file is missing."""
# Of a JPEG decoded while it is made smaller, which is several times faster; hashes look at 32 pixels a side.
_DRAFT = 64
# Handed to the threads at once: each waiting task weighs more than what comes of it.
_AT_ONCE = 4096
# An image whose miniature varies by less than this has no structure for a perceptual hash, whose bits are then noise.
_FLAT = 2.0


@dataclass(frozen=True)
class Looked:
    """What is known of N images; of one that cannot be opened all but its content is 0."""

    broken: dict[int, str]
    """By position why an image cannot be opened."""
    contents: NDArray[np.void]
    """(N,) 16 bytes of the SHA-256 of each file; of a file that cannot be read zeros."""
    hashes: NDArray[np.uint64]
    """(N,) perceptual hashes; 0 where an image is of one colour."""
    miniatures: NDArray[np.uint8]
    """(N, 8, 8, 3) the images squeezed into a square."""
    sizes: NDArray[np.int32]
    """(N, 2) width and height in pixels, upright."""
    file_bytes: NDArray[np.int64]
    """(N,) sizes of the files in bytes; -1 where one cannot be read."""

    def __len__(self) -> int:
        return len(self.hashes)


def look_at(images: Sequence[Path | Stored], workers: int | None = None, name: str = "images") -> Looked:
    """Open each image once, in threads, with a bar on a terminal.

    Args:
        images: N of them.
        workers: threads; None: one a core, at most 16.
        name: before the bar.

    Example:
        >>> look_at([]).sizes.shape
        (0, 2)
    """
    count = len(images)
    looked = Looked(
        {},
        np.zeros(count, "V16"),
        np.zeros(count, np.uint64),
        np.zeros((count, SIDE, SIDE, 3), np.uint8),
        np.zeros((count, 2), np.int32),
        np.full(count, -1, np.int64),
    )
    threads = workers or min(16, os.cpu_count() or 1)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=count, desc=name, unit="", disable=None, leave=False) as bar,
    ):
        # Pillow warns of odd metadata in files that it then opens well.
        warnings.simplefilter("ignore")
        for start in range(0, count, _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            for place, error in enumerate(pool.map(lambda at: _look(images[at], at, looked),
                                                   range(start, start + len(part))), start):  # fmt: skip
                if error is not None:
                    looked.broken[place] = error
                bar.update()
    return looked


def _look(image: Path | Stored, place: int, looked: Looked) -> str | None:
    """Fill in its row; why it cannot be opened, or None."""
    from imagehash import phash  # it brings SciPy, which a loader's worker has no use for

    try:
        content = image.read_bytes()
    except FileNotFoundError:
        return GONE
    except Exception as error:  # whatever stands between us and the bytes
        return f"cannot be read ({_said(error)})"
    looked.file_bytes[place] = len(content)
    looked.contents[place] = hashlib.sha256(content).digest()[:16]
    if not content:
        return "the file is empty"
    try:
        held = _Held(str(image), content)
        size = upright_size(content)
        seen = open_image(held, draft=_DRAFT)
        miniature = np.asarray(seen.resize((SIDE, SIDE), Image.Resampling.BOX))
        bits = phash(seen).hash
    except DataError as error:
        return _reason(str(image), str(error), content)
    except Exception as error:  # decoders fail in ways of their own; one image must not end the check
        return _reason(str(image), f"cannot be decoded ({_said(error)})", content)
    looked.sizes[place] = size
    looked.miniatures[place] = miniature
    if miniature.std(axis=(0, 1)).max() >= _FLAT:
        looked.hashes[place] = np.packbits(bits).view(">u8")[0]
    return None


def _reason(image: str, said: str, content: bytes) -> str:
    if content.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image"
    return said.removeprefix(f"{image}: ").partition("; ")[0]


def _said(error: Exception) -> str:
    return one_line(error) or type(error).__name__


class _Held(Stored):
    """A file that was read already."""

    __slots__ = ("content", "source")

    def __init__(self, source: str, content: bytes) -> None:
        self.source = source
        self.content = content

    @property
    def name(self) -> str:
        return self.source

    @property
    def size(self) -> int:
        return len(self.content)

    def __str__(self) -> str:
        return self.source

    def read_bytes(self) -> bytes:
        return self.content
