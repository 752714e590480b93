"""The files of an index folder, and its manifest, which names them with their checksums.

Data files carry their checksum in their names, and the manifest is replaced last: a reader sees either the complete old
index or the complete new one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError, one_line
from clipkit.files import to_disk, write_whole
from clipkit.opening import UnsuitableFileError, check_file, read_text
from clipkit.parsing import parse_json
from clipkit.search.folder import MANIFEST, check_is_index

FORMAT, VERSION = "clipkit-index", 1
_KEYS = {"model", "source", "rows", "captions", "width", "files", "features", "probes"}
_DATA_FILE = re.compile(r"[a-z]+-[0-9a-f]{16}\.(npy|parquet|faiss)")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index, after checking the sizes of its files; `check_content` checks their content.

    Raises:
        DataError: the folder is not a complete index, or a file is missing or damaged.
    """
    check_is_index(folder)
    try:
        manifest = parse_json(read_text(folder / MANIFEST))
    except (OSError, ValueError) as error:
        raise _damaged(folder / MANIFEST, one_line(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{folder}: is not an index of clipkit; give a folder that clipkit embed wrote")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{folder}: is an index of version {str(manifest.get('version'))[:20]}, but this version of "
            f"clipkit reads version {VERSION}; run clipkit embed with another folder as --out"
        )
    if not manifest.keys() >= _KEYS or not _is_table_of_files(manifest["files"]):
        raise _damaged(folder / MANIFEST, "entries are missing")
    if not all(isinstance(manifest[key], int) and manifest[key] >= 0 for key in ("rows", "captions", "width")):
        raise _damaged(folder / MANIFEST, "its numbers of rows, captions or dimensions are invalid")
    for kind, entry in manifest["files"].items():
        file = folder / entry["name"]
        try:
            check_file(file, entry["bytes"])
            size = file.stat().st_size
        except UnsuitableFileError as error:
            raise _damaged(file, str(error.strerror)) from None
        except OSError as error:
            raise _damaged(file, f"the {kind} cannot be read, {error.strerror}") from None
        if size != entry["bytes"]:
            raise _damaged(file, f"{size:,} bytes instead of {entry['bytes']:,}")
    return manifest


def _is_table_of_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and _DATA_FILE.fullmatch(entry["name"]) is not None
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"{file}: the index is damaged ({reason}); run clipkit embed with a new folder as --out")


def check_content(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the checksum of every file with the manifest; this reads the whole index.

    Raises:
        DataError: a file was changed.
    """
    for entry in manifest["files"].values():
        if _sha256(folder / entry["name"]) != entry["sha256"]:
            raise _damaged(folder / entry["name"], "its checksum differs")


def file_of(folder: Path, manifest: Mapping[str, Any], kind: str) -> Path:
    """Return the path of a file by its kind, e.g. "rows".

    Raises:
        DataError: the manifest does not name the file.
    """
    if kind not in manifest["files"]:
        raise _damaged(folder / MANIFEST, f"it contains no {kind}")
    return folder / str(manifest["files"][kind]["name"])


def open_array(
    folder: Path, manifest: Mapping[str, Any], kind: str, dtype: Any, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return an array of an index, memory-mapped; changes to the array are not written to the file.

    Raises:
        DataError: the file is damaged, or has another type or shape.
    """
    file = file_of(folder, manifest, kind)
    try:
        array = np.load(file, mmap_mode="c", allow_pickle=False) if shape[0] else np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError) as error:  # raised for damaged headers
        raise _damaged(file, one_line(error)) from None
    if array.dtype != dtype or array.shape != shape:
        raise _damaged(file, f"{array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}")
    return array


def name_by_content(temporary: Path, kind: str) -> dict[str, Any]:
    """Rename a finished file so that its name contains its checksum; return its entry for the manifest."""
    to_disk(temporary)
    sha256 = _sha256(temporary)
    entry = {"name": f"{kind}-{sha256[:16]}{temporary.suffix}", "bytes": temporary.stat().st_size, "sha256": sha256}
    temporary.replace(temporary.parent.parent / str(entry["name"]))
    return entry


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest, then remove the data files that it does not name."""
    to_disk(folder)
    write_whole(folder / MANIFEST, json.dumps({"format": FORMAT, "version": VERSION, **manifest}, indent=1) + "\n")
    named = {entry["name"] for entry in manifest["files"].values()}
    for file in folder.iterdir():
        if _DATA_FILE.fullmatch(file.name) and file.name not in named:
            file.unlink()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
