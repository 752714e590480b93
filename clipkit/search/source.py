"""Read the images of a source with their captions and all other columns, for an index."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.sequences import Files, chosen, first_positions
from clipkit.data.sources.columns import Rows, Wanted, split_options
from clipkit.data.sources.delimited import all_columns
from clipkit.data.sources.json_rows import all_objects
from clipkit.data.sources.read import read_rows
from clipkit.findings import Finding
from clipkit.images import Stored

IMAGE, CONTENT, POSITION, CAPTIONS = "image", "content", "position", "captions"
"""Columns that an index adds: location, SHA-256 of the file, position in the source (-1 in a stream), captions."""
RESERVED = {IMAGE: pa.string(), CONTENT: pa.string(), POSITION: pa.int64(), CAPTIONS: pa.list_(pa.string())}
"""Types of these columns."""
_NEEDED, _OPTIONAL = ("image",), ("caption", "label")


@dataclass(frozen=True)
class Images:
    """N images of a source, with their captions and other columns."""

    name: str
    files: Sequence[Path | Stored]
    captions: Sequence[Sequence[str]]
    """Distinct captions of each image; empty for an image without any."""
    columns: pa.Table
    """(N rows) all other columns, from the first row of each image."""
    findings: Sequence[Finding]

    def location(self, position: int) -> str:
        """Return the location of an image: its path as the source writes it, or its place in an archive or table.

        Args:
            position: position of the image, from 0.
        """
        if isinstance(self.files, Files):
            return self.files.names[position]
        return str(self.files[position])


def read_images(source: object) -> Images:
    """Read the images of a source, with captions and labels if the source has them.

    Raises:
        DataError: the source cannot be read or has no images.
    """
    rows = read_rows(source, _NEEDED, _OPTIONAL)
    assert rows.images is not None
    image_of_row, first = first_positions(rows.keys)
    captions: list[list[str]] = [[] for _ in first]
    if "caption" in rows.columns:
        for image, texts in zip(image_of_row.tolist(), rows.columns["caption"].to_pylist(), strict=True):
            for text in [texts] if isinstance(texts, str) else texts or ():
                if text.strip() and text.strip() not in captions[image]:
                    captions[image].append(text.strip())
    return Images(rows.name, chosen(rows.images, first), captions, _columns(source, rows, first), rows.findings)


def _columns(source: object, rows: Rows, first: NDArray[np.int64]) -> pa.Table:
    """Return all columns except image and caption, one row per image. Labels are replaced by class names.

    Args:
        rows: rows of the source, of which several can have the same image.
        first: first row of each image.
    """
    table = _whole_table(source, rows)
    given = {rows.found.get(role, "") for role in ("image", "caption")}
    columns: dict[str, Any] = {}
    if table is not None and len(table) == len(rows.images or ()):
        taken = table.take(pa.array(first))
        columns = {name: taken[name] for name in table.column_names if name not in given and _is_kept(taken[name].type)}
    if "label" in rows.columns:
        labels = rows.columns["label"].take(pa.array(first)).to_pylist()
        names = rows.classes.names if rows.classes is not None else None
        if names is not None and rows.classes is not None:
            name_of = dict(zip(rows.classes.labels or names, names, strict=False))
            labels = [name_of.get(label, label) if isinstance(label, str) else label for label in labels]
        columns[rows.found.get("label", "label")] = pa.array(labels)
    return pa.table({f"{name}_" if name in RESERVED else name: column for name, column in columns.items()})


def _is_kept(kind: pa.DataType) -> bool:
    """Return whether the index keeps a column of this type. Columns that may contain image bytes are not kept."""
    types = pa.types
    return not (types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind) or types.is_null(kind))


def _whole_table(source: object, rows: Rows) -> pa.Table | None:
    """Read the table of a source with all columns and their types. None for a source without a table."""
    if not isinstance(source, str | Path):
        return source if isinstance(source, pa.Table) else None
    name, options = split_options(str(source))
    path = Path(name).expanduser()
    if path.is_dir():
        tables = [path / f"metadata.{ending}" for ending in ("csv", "jsonl", "parquet")]
        path = next((table for table in tables if table.is_file()), path)
    if not path.is_file():
        return None
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return all_columns(path, Wanted(str(source), options, _NEEDED, _OPTIONAL))
        case ".parquet":
            from pyarrow import parquet

            schema = parquet.read_schema(path)
            return parquet.read_table(path, columns=[field.name for field in schema if _is_kept(field.type)])
        case ".jsonl" | ".json":
            return _of_objects(all_objects(path))
    return None


def _of_objects(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Convert JSON objects to a table. A column of mixed types becomes JSON text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array([None if value is None else json.dumps(value) for value in values])
    return pa.table(columns)
