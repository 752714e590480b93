"""Choice of the column for each role, e.g. image or caption, if a source has several possible columns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from clipkit.findings import Finding

PEEKED = 20
"""Number of rows whose values are examined."""

Peek = Callable[[str], Sequence[Any]]
"""Function from the name of a column to the values of its first rows; b"" in place of image bytes."""

_OF_IMAGES = ("image bytes", "image paths", "paths of missing images", "URLs", "other texts", "no images")
_OF_TEXTS = ("texts", "numbers", "no texts")
_OF_LABELS = ("labels", "no labels")
CERTAIN = 2
"""Largest rank (see `rank_of`) of a column that certainly contains images, whatever its name."""


def rank_of(role: str, values: Sequence[Any], folder: Path) -> tuple[int, str]:
    """Return how well values fit a role: a rank (0 is best), and the kind of the values, e.g. "URLs".

    For images, bytes are best, then paths, then URLs.

    Args:
        role: image, label, or a role of texts such as caption.
        values: values of the first rows of a column.
        folder: folder to which paths are relative.

    Example:
        >>> rank_of("image", ["https://host/1.jpg"], Path()), rank_of("image", [7], Path())
        ((3, 'URLs'), (5, 'no images'))
    """
    kinds = {"image": _OF_IMAGES, "label": _OF_LABELS}.get(role, _OF_TEXTS)
    filled = [value for value in values if value not in (None, "", [])]
    if role == "image":
        rank = _rank_of_images(filled, folder)
    elif role == "label":
        rank = 0 if all(isinstance(value, str | int | float | list) for value in filled) else 1
    elif not all(isinstance(value, str) or _is_list_of_texts(value) for value in filled):
        rank = 2
    else:
        rank = int(bool(filled) and all(isinstance(value, str) and _is_number(value) for value in filled))
    return rank, kinds[rank]


def _rank_of_images(values: Sequence[Any], folder: Path) -> int:
    if any(isinstance(value, bytes | dict) for value in values):
        return 0
    if not all(isinstance(value, str) for value in values):
        return 5
    if 2 * sum("://" in value for value in values) > len(values):
        return 3
    if any(_is_file(folder, value) for value in values):
        return 1
    endings = Image.registered_extensions()
    return 2 if 2 * sum(Path(value).suffix.lower() in endings for value in values) > len(values) else 4


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(text is None or isinstance(text, str) for text in value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def choose(role: str, candidates: Sequence[str], peek: Peek, folder: Path) -> tuple[str, str]:
    """Return the column that fits a role best (see `rank_of`), and a sentence about the choice for messages.

    Ties go to the first of the candidates. Paths in the values are relative to `folder`.
    """
    ranks = {name: rank_of(role, peek(name), folder) for name in candidates}
    best = min(candidates, key=lambda name: ranks[name][0])
    described = [f"{name} ({ranks[name][1]})" for name in (best, *(name for name in candidates if name != best))]
    return best, f"the {role} is the column {described[0]}" + f", not {', '.join(described[1:])}" * (len(described) > 1)


def columns_of_images(header: Sequence[str], peek: Peek, folder: Path) -> list[str]:
    """Return the columns whose values are images, whatever the names of the columns."""
    return [name for name in header if rank_of("image", peek(name), folder)[0] <= CERTAIN]


def choice_finding(source: str, choices: Sequence[str], advice: str) -> Finding:
    """Return a finding that reports which columns a reader chose among several."""
    return Finding("column_choice", "note", f"{source}: {'; '.join(choices)}", advice)


def of_table(table: Any) -> Peek:
    """Return a function that takes a column name and returns the first values of this column of an Arrow table."""

    def peek(name: str) -> Sequence[Any]:
        column = table.column(name)
        return [b""] if has_bytes(column.type) else values_of(column.slice(0, PEEKED))

    return peek


def values_of(column: Any) -> list[Any]:
    """Return the values of an Arrow column; [] if the column is damaged."""
    try:
        column.validate(full=True)  # without this check, a wrong offset in a memory-mapped file would crash the process
        return list(column.to_pylist())
    except (pa.ArrowException, UnicodeDecodeError):  # the reader of the source reports a damaged column
        return []


def has_bytes(kind: Any) -> bool:
    """Return whether an Arrow type stores file contents: binary, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_view = getattr(pa.types, "is_binary_view", lambda _: False)(kind)  # not in older versions of pyarrow
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or is_view
    )
