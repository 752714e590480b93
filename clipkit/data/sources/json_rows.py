"""Reader of JSON and JSONL files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipkit.data.sequences import Files
from clipkit.data.sources.choice import PEEKED
from clipkit.data.sources.columns import Rows, Wanted
from clipkit.errors import DataError
from clipkit.opening import open_file, read_text
from clipkit.parsing import parse_json

_EXAMPLE = '{"image": "a.jpg", "caption": "a dog"}'


@dataclass
class _Position:
    """File and number of the row that is being read, for messages."""

    path: Path
    row: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.row} {self.number}" if self.number else f"{self.path}:"


def read_json_lines(name: str, wanted: Wanted) -> Rows:
    """Read a JSONL file with one object per line, whose values are strings or lists of strings.

    Image paths are relative to the file.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or malformed, or a column is missing; the message names the
            line.
    """
    position = _Position(Path(name), "line")
    with _as_data_errors(position):
        return _rows_of(position, _lines(position), wanted)


def read_json(name: str, wanted: Wanted) -> Rows:
    """Read a JSON file with a list of rows, or with an object that maps IDs to rows.

    Image paths are relative to the file.

    Raises:
        DataError: as for `read_json_lines`.
    """
    position = _Position(Path(name), "row")
    with _as_data_errors(position):
        return _rows_of(position, _listed(position), wanted)


def all_objects(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a JSON or JSONL file, each with all its keys.

    Raises:
        DataError: as for `read_json`.
    """
    in_lines = path.suffix.lower() == ".jsonl"
    position = _Position(path, "line" if in_lines else "row")
    with _as_data_errors(position):
        return [row for _, row in _objects(position, (_lines if in_lines else _listed)(position))]


def _lines(position: _Position) -> Iterator[Any]:
    """Yield the rows of a JSONL file; before each row, set `position` to its line."""
    with open_file(position.path) as file:
        for position.number, content in enumerate(file, 1):
            if content.strip():
                yield parse_json(content.decode("utf-8-sig" if position.number == 1 else "utf-8"))


def _listed(position: _Position) -> Iterator[Any]:
    """Yield the rows of a JSON file; before each row, set `position` to its number."""
    content = parse_json(read_text(position.path))
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{position.path}: must be a list of rows, or an object that maps IDs to rows; for example [{_EXAMPLE}]"
        )
    for position.number, row in enumerate(rows, 1):
        yield row


@contextmanager
def _as_data_errors(position: _Position) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{position.path}: file not found; paths are relative to the working directory") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{position} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{position} is not JSON ({error}); fix the file") from None
    except OSError as error:
        raise DataError(
            f"{position.path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None


def _rows_of(position: _Position, rows: Iterable[Any], wanted: Wanted) -> Rows:
    path = position.path
    names: dict[str, str] = {}
    values: dict[str, list[str | list[str] | None]] = {}
    checked = _objects(position, rows)
    first = list(islice(checked, PEEKED))
    if first:
        header = list(dict.fromkeys(key for _, row in first for key in row))
        names = wanted.columns_among(path, header, lambda name: [row.get(name) for _, row in first], path.parent)
        values = {role: [] for role in names}
    for position.number, row in chain(first, checked):
        for role, name in names.items():
            is_unlabeled = role == "label" and name in row and row[name] is None
            values[role].append(None if is_unlabeled else _value(position, row, name))
    if not names:
        raise DataError(f"{path}: is empty; write objects such as {_EXAMPLE}")
    columns = {role: strings_or_lists(column) for role, column in values.items()}
    paths = columns.pop("image", None)
    if paths is not None and not pa.types.is_large_string(paths.type):
        raise DataError(f"{path}: the column {names['image']} contains lists; give one image per row")
    images = None if paths is None else Files.of(path.parent, paths)
    return Rows(str(path), columns, images, paths, names)


def _objects(position: _Position, rows: Iterable[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Check that each row is a JSON object; yield (number, row). `rows` is the iterator of `_lines` or `_listed`."""
    for row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{position} is not a JSON object; write for example {_EXAMPLE}")
        yield position.number, row


def strings_or_lists(values: Sequence[str | list[str] | None]) -> pa.Array:
    """Return a column of strings; if any value is a list, a column of lists of strings."""
    if any(isinstance(value, list) for value in values):
        lists = [[value] if isinstance(value, str) else value for value in values]
        return pa.array(lists, pa.large_list(pa.large_string()))
    return pa.array(values, pa.large_string())


def _value(position: _Position, row: dict[str, Any], name: str) -> str | list[str]:
    value = row.get(name, "")
    value = "" if value is None else value
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise DataError(f"{position}: {name} is {str(value)[:60]}; give a string, or a list of strings")
    if any(_has_surrogates(part) for part in parts):
        raise DataError(
            f"{position}: {name} contains half of a surrogate pair, which is not valid text; fix this value"
        )
    return value


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False
