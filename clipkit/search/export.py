"""Export of an index to NumPy, Parquet or LanceDB: one row per image, with its columns and its features in float32."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from clipkit.errors import OutputError, UserError, one_line
from clipkit.export_formats import index_format
from clipkit.files import replacing
from clipkit.overwriting import check_new
from clipkit.search.layout import check_content, write_array

_BLOCK = 16_384
_FEATURES = "features"
_ABOUT = "clipkit.index"
"""Key of the description of an index in the metadata of a Parquet file or a table."""


class Exported(Protocol):
    """Attributes of `clipkit.search.Index` that the functions of this module read."""

    path: Path
    manifest: dict[str, Any]
    features: NDArray[np.float16]

    @property
    def rows(self) -> pa.Table: ...

    @property
    def texts(self) -> list[str]: ...

    @property
    def text_features(self) -> NDArray[np.float16]: ...


def export(index: Exported, to: str, out: Path) -> None:
    """Write an index in the format of another library; arguments and errors as for `Index.export`."""
    index_format(to)
    check_new(out)
    check_content(index.path, index.manifest)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            _WRITERS[to](index, temporary)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); give another path") from None


def column_of_features(index: Exported) -> str:
    """Return the name for the exported column of features.

    The name is "features". If the data already has a column of this name, underscores are appended.
    """
    name = _FEATURES
    while name in index.rows.column_names:
        name += "_"
    return name


def write_numpy(index: Exported, folder: Path) -> None:
    """Write an index as NumPy arrays and JSON Lines files to a new folder.

    The files are features.npy (N, D) and rows.jsonl for the images, text_features.npy (T, D) and texts.jsonl for the
    distinct captions, and index.json with the model and the source.
    """
    folder.mkdir()
    _write_array(folder / "features.npy", index.features)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for start in range(0, len(index.features), _BLOCK):
            for row in index.rows.slice(start, _BLOCK).to_pylist():
                file.write(_line(row))
    if index.texts:
        _write_array(folder / "text_features.npy", index.text_features)
        with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(_line({"text": text}) for text in index.texts)
    (folder / "index.json").write_text(json.dumps(_about(index), indent=2) + "\n", encoding="utf-8")


def write_parquet(index: Exported, file: Path) -> None:
    """Write an index as a Parquet file with one row per image.

    The file has all columns of the index, and a column of features, which are fixed-size lists of D floats.
    """
    with parquet.ParquetWriter(file, _schema(index), compression="zstd") as writer:
        for table in _tables(index):
            writer.write_table(table)


def write_lancedb(index: Exported, folder: Path) -> None:
    """Write an index as a LanceDB database. Its table `images` has the same columns as the Parquet file.

    Raises:
        UserError: LanceDB rejects the table, e.g. because of the name of a column.
    """
    import lancedb

    batches = (batch for table in _tables(index) for batch in table.to_batches())
    try:
        lancedb.connect(folder).create_table("images", data=batches, schema=_schema(index))
    except (RuntimeError, ValueError) as error:  # a full disk, or a type or a name that LanceDB does not have
        if (full := os.strerror(errno.ENOSPC)) in str(error):
            raise OSError(errno.ENOSPC, full) from None
        reason = one_line(error).partition(", /")[0]  # without the line of LanceDB's source code
        raise UserError(f"{index.path}: LanceDB rejects the rows of the index ({reason}); use --to parquet") from None


_WRITERS: dict[str, Callable[[Exported, Path], None]] = {
    "numpy": write_numpy,
    "parquet": write_parquet,
    "lancedb": write_lancedb,
}


def _tables(index: Exported) -> Iterator[pa.Table]:
    schema, width = _schema(index), index.features.shape[1]
    for start in range(0, len(index.features), _BLOCK):
        values = pa.array(index.features[start : start + _BLOCK].astype(np.float32).reshape(-1))
        rows = index.rows.slice(start, _BLOCK)
        features = pa.FixedSizeListArray.from_arrays(values, width)
        yield pa.table([*rows.columns, features], schema=schema)


def _schema(index: Exported) -> pa.Schema:
    features = pa.field(column_of_features(index), pa.list_(pa.float32(), index.features.shape[1]))
    return index.rows.schema.append(features).with_metadata({_ABOUT: json.dumps(_about(index))})


def _about(index: Exported) -> dict[str, Any]:
    """Return the metadata of an index for its export, e.g. the model and the source."""
    names = ("clipkit", "model", "source", "rows", "width")
    return {name: index.manifest.get(name) for name in names} | {"max_error": index.manifest["features"]["max_error"]}


def _write_array(file: Path, features: NDArray[np.float16]) -> None:
    parts = (features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK))
    write_array(file, parts, np.float32, features.shape)


def _line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON. Numbers that are not finite become null, and dates become text."""
    return json.dumps(_finite(row), ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """Replace infinite numbers and NaN by None in a value, also inside lists and dicts."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
