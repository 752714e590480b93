"""Checks of an index folder that need no heavy library."""

import os
from pathlib import Path

from clipkit.errors import DataError, OutputError
from clipkit.opening import read_text

MANIFEST = "manifest.json"
FORMAT = "clipkit-index"
"""Entry `format` of a manifest."""
UNFINISHED = "unfinished"
"""Folder with the features of an index that is being written."""


def is_index(folder: Path) -> bool:
    """Return whether a folder contains an index. File contents are not checked."""
    try:
        return f'"{FORMAT}"' in read_text(folder / MANIFEST)
    except (OSError, ValueError):
        return False


def check_is_index(folder: Path) -> None:
    """Check that a folder contains a complete index, without opening its files.

    Raises:
        DataError: the folder contains no complete index.
    """
    if (folder / MANIFEST).is_file():
        return
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found; write the index with clipkit embed D --model M --out {folder}")
    if (folder / UNFINISHED).is_dir():
        raise DataError(f"{folder}: is an unfinished index; run the same clipkit embed command again")
    raise DataError(f"{folder}: is not an index (it has no {MANIFEST}); give a folder that clipkit embed wrote")


def check_index_folder(folder: Path) -> None:
    """Check that an index can be written to a folder.

    Raises:
        OutputError: the path is a file, the folder is not writable, or it contains something other than an index.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is not a folder; give a new folder")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: the folder {folder.absolute().parent} does not exist; create it first")
    existing = folder if folder.is_dir() else folder.absolute().parent
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{folder}: cannot be written to: {existing} is read-only; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not _is_index_or_begun(folder):
        raise OutputError(f"{folder}: is not an index, but contains files; give a new or empty folder")


def _is_index_or_begun(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / UNFINISHED).is_dir()
