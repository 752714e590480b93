"""Folders of the cache: stored inputs of training, features of evaluations. Processes lock the folders in use."""

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
"""Name of the file that is written last: a store without it is unfinished."""
_LOCK = ".lock"


def stores_folder() -> Path:
    """Return the folder that contains all stores."""
    return cache_folder() / "stored"


@dataclass(frozen=True)
class Cached:
    """A folder of the cache, with its size and the time of its last use."""

    folder: Path
    size: int
    """Bytes on disk."""
    used: float
    """Time of the last use, in seconds since 1970."""
    about: Mapping[str, Any]
    """Description of the content; empty if the folder is unfinished or damaged."""


def stored_inputs() -> list[Cached]:
    """Return all stores on this machine, also unfinished ones, the least recently used first."""
    folders = [folder for folder in stores_folder().glob("*") if folder.is_dir()]
    return _by_use((folder, _about(folder)) for folder in folders)


def evaluated_features() -> list[Cached]:
    """Return the folders with features of evaluations, one per tower, the least recently used first."""
    folders = {file.parent for file in cache_folder().glob("*/*.safetensors")}
    about = {"what": "features of one tower", "data": "evaluations"}
    return _by_use((folder, about) for folder in folders)


def _by_use(folders: Iterable[tuple[Path, Mapping[str, Any]]]) -> list[Cached]:
    found = []
    for folder, about in folders:
        with suppress(FileNotFoundError):  # another process may have removed it meanwhile
            found.append(Cached(folder, size_on_disk(folder), last_use(folder), about))
    return sorted(found, key=lambda cached: cached.used)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = parse_json((folder / INDEX).read_text(encoding="utf-8"))["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


def hold(folder: Path) -> IO[str] | None:
    """Mark a folder as used now, and keep it from being removed while the returned file is open.

    The result is None if the folder cannot be marked, e.g. on a read-only disk, or on Windows, which has no such locks.
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
    """Remove a folder unless a process uses it; return whether it was removed."""
    with _alone(folder) as unused:
        if unused:
            shutil.rmtree(folder, ignore_errors=True)
    return unused


def is_used(folder: Path) -> bool:
    """Return whether a running process uses a folder."""
    with _alone(folder) as unused:
        return not unused


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Context in which no other process can use a folder; yields False if another process already uses the folder."""
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
    """Return the time of the last use of a folder, in seconds since 1970."""
    marked = folder / _LOCK
    return (marked if marked.exists() else folder).stat().st_mtime


def size_on_disk(folder: Path) -> int:
    """Return the size of all files of a folder in bytes."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size
    return total


def readable_size(size: float) -> str:
    """Format a size in bytes with a unit.

    >>> readable_size(3_400_000_000)
    '3.4 GB'
    """
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
