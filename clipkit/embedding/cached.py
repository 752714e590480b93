"""Folders of the cache on this machine: their contents, sizes, locks and times of last use.

A folder contains a store (outputs of frozen tower parts, written by a training run), or features that evaluations
computed with one tower. A process locks the folders in use, so that no other process removes them.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clipkit.files import cache_folder
from clipkit.parsing import parse_json

INDEX = "index.json"
"""Name of the file that completes a store. It is written last: a store without it is unfinished."""
_LOCK = ".lock"


def stores_folder() -> Path:
    """Return the folder of all stores. A store contains outputs of frozen tower parts for training."""
    return cache_folder() / "stored"


@dataclass(frozen=True)
class Cached:
    """Folder of the cache, with its size and the time of its last use."""

    folder: Path
    size: int
    """Bytes on disk."""
    used: float
    """Time of the last use, in seconds since 1970."""
    about: Mapping[str, Any]
    """Description of the content, as JSON values; empty if the folder is unfinished or damaged."""


def stored_inputs() -> list[Cached]:
    """Return the stores of training runs, finished and unfinished, the least recently used first."""
    folders = [folder for folder in stores_folder().glob("*") if folder.is_dir()]
    return _by_use((folder, _about(folder)) for folder in folders)


def evaluated_features() -> list[Cached]:
    """Return the folders with features from evaluations, one per tower, the least recently used first."""
    folders = {file.parent for file in cache_folder().glob("*/*.safetensors")}
    about = {"what": "features of one tower", "data": "evaluations"}
    return _by_use((folder, about) for folder in folders)


def _by_use(folders: Iterable[tuple[Path, Mapping[str, Any]]]) -> list[Cached]:
    found = []
    for folder, about in folders:
        with suppress(FileNotFoundError):  # another process may just have removed the folder
            found.append(Cached(folder, size_on_disk(folder), last_use(folder), about))
    return sorted(found, key=lambda cached: cached.used)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = parse_json((folder / INDEX).read_text(encoding="utf-8"))["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


def hold(folder: Path) -> IO[str] | None:
    """Protect a cache folder from removal while the returned file is open, and mark the folder as used now.

    Return None if the folder does not exist or cannot be written to. On Windows, the folder is not protected.
    """
    try:
        file = (folder / _LOCK).open("a")
        os.utime(folder / _LOCK)
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:
        return None
    return file


def remove(folder: Path) -> bool:
    """Remove a cache folder. Return False, and keep the folder, if a process uses it."""
    with _alone(folder) as unused:
        if unused:
            shutil.rmtree(folder, ignore_errors=True)
    return unused


def is_used(folder: Path) -> bool:
    """Return whether a running process uses a folder of the cache."""
    with _alone(folder) as unused:
        return not unused


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Context manager that locks a cache folder. It yields False if another process uses the folder."""
    if sys.platform == "win32" or not (folder / _LOCK).exists():
        yield True
        return
    import fcntl

    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def last_use(folder: Path) -> float:
    """Return the time of the last use of a cache folder, in seconds since 1970."""
    marked = folder / _LOCK
    return (marked if marked.exists() else folder).stat().st_mtime


def size_on_disk(folder: Path) -> int:
    """Return the total size of the files in a folder and its subfolders, in bytes."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size
    return total


def readable_size(size: float) -> str:
    """Return a size in bytes as text with a unit: bytes, kB, MB or GB.

    >>> readable_size(3_400_000_000)
    '3.4 GB'
    """
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
