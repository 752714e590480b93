"""The files of an index folder, and its manifest, which lists the files with their checksums.

The name of each data file contains its checksum, and the manifest is replaced last. So a reader sees either the
complete old index or the complete new index.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from clipkit.errors import DataError, one_line
from clipkit.files import to_disk, write_whole
from clipkit.opening import UnsuitableFileError, check_file, read_text
from clipkit.parsing import parse_json
from clipkit.search.entries import invalid_entry
from clipkit.search.folder import FORMAT, MANIFEST, check_is_index

VERSION = 1
_NEEDED = {"rows", "features"}
_HEAD = 32 << 20  # bytes
_HEADER_ERRORS = (ValueError, TypeError, KeyError, SyntaxError, EOFError, OverflowError, MemoryError, TokenError)
_DATA_FILE = re.compile(r"[a-z]+-[0-9a-f]{16}\.(npy|parquet|faiss)")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an index, and check the sizes of the files that it lists.

    The function `check_content` checks the content of the files.

    Raises:
        DataError: the folder is not a complete index, or a file is missing or damaged.
    """
    check_is_index(folder)
    try:
        manifest = parse_json(read_text(folder / MANIFEST))
    except (OSError, ValueError) as error:
        raise damaged(folder / MANIFEST, one_line(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{folder}: is not an index of clipkit; give a folder that clipkit embed wrote")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{folder}: is an index of version {str(manifest.get('version'))[:20]}, but this version of "
            f"clipkit reads version {VERSION}; run clipkit embed with another folder as --out"
        )
    if not _is_table_of_files(manifest.get("files")):
        raise damaged(folder / MANIFEST, "the entry 'files' is missing or invalid")
    if (name := invalid_entry(manifest)) is not None:
        raise damaged(folder / MANIFEST, f"the entry {name!r} is missing or invalid")
    for kind, entry in manifest["files"].items():
        file = folder / entry["name"]
        try:
            check_file(file, entry["bytes"])
            size = file.stat().st_size
        except UnsuitableFileError as error:
            raise damaged(file, str(error.strerror)) from None
        except OSError as error:
            raise damaged(file, f"the file of the {kind} cannot be read: {error.strerror}") from None
        if size != entry["bytes"]:
            raise damaged(file, f"it has {size:,} bytes instead of {entry['bytes']:,}")
    return manifest


def _is_table_of_files(files: Any) -> bool:
    return (
        isinstance(files, dict)
        and files.keys() >= _NEEDED
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and _DATA_FILE.fullmatch(entry["name"]) is not None
            and type(entry.get("bytes")) is int
            and isinstance(entry.get("sha256"), str)
            for entry in files.values()
        )
    )


def damaged(file: Path, reason: str) -> DataError:
    """Return the error for a damaged file of an index, with the reason."""
    return DataError(f"{file}: the index is damaged ({reason}); run clipkit embed with a new folder as --out")


def check_content(folder: Path, manifest: Mapping[str, Any], *, whole: bool = True) -> None:
    """Compare the checksums of all files of an index with the manifest.

    Args:
        folder, manifest: folder and manifest of the index.
        whole: True: compare the checksum of the whole file. False: compare that of the first 32 MiB of each file.

    Raises:
        DataError: a file has changed or cannot be read.
    """
    for entry in manifest["files"].values():
        file = folder / entry["name"]
        # The head is always checked: it contains array sizes, with which FAISS allocates memory.
        name = "head" if not whole and "head" in entry else "sha256"
        try:
            is_same = (_sha256_of_head if name == "head" else _sha256)(file) == entry[name]
        except OSError as error:
            raise damaged(file, one_line(error)) from None
        if not is_same:
            raise damaged(file, "its checksum differs from the manifest")


def file_of(folder: Path, manifest: Mapping[str, Any], kind: str) -> Path:
    """Return the path of a file of an index.

    Args:
        folder, manifest: folder and manifest of the index.
        kind: kind of the file, e.g. "rows" or "features".

    Raises:
        DataError: the manifest does not list the file.
    """
    if kind not in manifest["files"]:
        raise damaged(folder / MANIFEST, f"it does not list the file of the {kind}")
    return folder / str(manifest["files"][kind]["name"])


def open_array(
    folder: Path, manifest: Mapping[str, Any], kind: str, dtype: Any, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Open an array of an index, memory-mapped. Changes to the array are not written to the file.

    Args:
        folder, manifest: folder and manifest of the index.
        kind: kind of the file, e.g. "features".
        dtype, shape: type and shape that the array must have.

    Raises:
        DataError: the file is damaged, or the array has another type or shape.
    """
    file = file_of(folder, manifest, kind)
    try:
        array = np.load(file, mmap_mode="c", allow_pickle=False) if shape[0] else np.load(file, allow_pickle=False)
    except (*_HEADER_ERRORS, OSError) as error:
        raise damaged(file, one_line(error)) from None
    if array.dtype != dtype or array.shape != shape:
        raise damaged(file, f"it contains {array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}")
    if isinstance(array, np.memmap) and array.offset + array.nbytes != file.stat().st_size:
        raise damaged(file, f"its header has the wrong length: {array.offset} bytes")
    return array


def write_array(file: Path, parts: Iterable[NDArray[Any]], dtype: Any, shape: tuple[int, ...]) -> None:
    """Write an array in NumPy's format, in parts.

    Args:
        parts: blocks of rows, in order.
        shape: shape of the whole array.

    Raises:
        OSError: the file cannot be written.
    """
    # The file is not memory-mapped, because a full disk would then kill the process without a message.
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with file.open("wb") as to:
        np.lib.format.write_array_header_1_0(to, header)
        for part in parts:
            to.write(np.ascontiguousarray(part, dtype).data)


def open_table(
    folder: Path, manifest: Mapping[str, Any], kind: str, count: int, columns: Mapping[str, pa.DataType]
) -> pa.Table:
    """Read a table of an index.

    Args:
        folder, manifest: folder and manifest of the index.
        kind: "rows" or "texts".
        count: number of rows that the table must have.
        columns: names and types of columns that the table must have.

    Raises:
        DataError: the file is damaged, or the table lacks rows or columns.
    """
    file = file_of(folder, manifest, kind)
    try:
        table = parquet.ParquetFile(file).read()  # read_table imports pandas
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(file, one_line(error)) from None
    types = {field.name: field.type for field in table.schema}
    if len(table) != count or any(types.get(name) != kept for name, kept in columns.items()):
        raise damaged(file, "rows or columns are missing or have the wrong type")
    if any(_has_nulls(table[name]) for name in columns):
        raise damaged(file, "values are missing")
    return table


def _has_nulls(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count) or (pa.types.is_list(column.type) and bool(pc.list_flatten(column).null_count))


def name_by_content(temporary: Path, kind: str) -> dict[str, Any]:
    """Move a finished file into the folder of the index, under a name that contains its checksum.

    Args:
        temporary: file in a subfolder of the folder of the index.
        kind: kind of the file, e.g. "rows", with which the new name begins.

    Returns:
        The entry of the file for the manifest.
    """
    to_disk(temporary)
    sha256 = _sha256(temporary)
    entry: dict[str, Any] = {
        "name": f"{kind}-{sha256[:16]}{temporary.suffix}",
        "bytes": temporary.stat().st_size,
        "sha256": sha256,
    }
    if entry["bytes"] > _HEAD:
        entry["head"] = _sha256_of_head(temporary)
    temporary.replace(temporary.parent.parent / str(entry["name"]))
    return entry


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of an index, and then remove all data files that it does not list."""
    to_disk(folder)
    write_whole(folder / MANIFEST, json.dumps({"format": FORMAT, "version": VERSION, **manifest}, indent=1) + "\n")
    named = {entry["name"] for entry in manifest["files"].values()}
    for file in folder.iterdir():
        if _DATA_FILE.fullmatch(file.name) and file.name not in named:
            file.unlink()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sha256_of_head(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.sha256(opened.read(_HEAD)).hexdigest()
