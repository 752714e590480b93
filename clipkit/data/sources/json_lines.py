"""JSONL files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipkit.data.sequences import Files
from clipkit.data.sources.columns import Rows, Wanted
from clipkit.errors import DataError


def read_json_lines(path: Path, wanted: Wanted) -> Rows:
    """Rows of a JSONL file, an object a line; a value is a string or a list of them. Paths are relative to the file.

    Raises:
        DataError: the file is missing, empty, not UTF-8, malformed, or lacks a column; with the line.
    """
    names: dict[str, str] = {}
    values: dict[str, list[str | list[str]]] = {}
    line = 0
    try:
        with path.open("rb") as file:
            for line, content in enumerate(file, 1):
                if not content.strip():
                    continue
                row = json.loads(content.decode("utf-8-sig" if line == 1 else "utf-8"))
                if not isinstance(row, dict):
                    raise DataError(f'{path}: line {line} is no object; write one a line, as {{"image": "a.jpg"}}')
                if not names:
                    names = wanted.columns_among(path, list(row))
                    values = {role: [] for role in names}
                for role, name in names.items():
                    values[role].append(_value(path, line, row, name))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; paths are relative to the working directory") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {line} is not UTF-8 (place {error.start + 1}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: line {line} is not JSON ({error}); mend it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check it") from None
    if not names:
        raise DataError(f'{path}: is empty; write an object a line, as {{"image": "a.jpg", "caption": "a dog"}}')
    columns = {role: strings_or_lists(own) for role, own in values.items()}
    paths = columns.pop("image", None)
    if paths is not None and not pa.types.is_large_string(paths.type):
        raise DataError(f"{path}: its {names['image']} are lists; a row has one image")
    images = None if paths is None else Files.of(path.parent, paths)
    return Rows(str(path), columns, images, paths, names)


def strings_or_lists(values: list[str | list[str]]) -> pa.Array:
    """One column: lists where any value is one."""
    if any(isinstance(value, list) for value in values):
        lists = [value if isinstance(value, list) else [value] for value in values]
        return pa.array(lists, pa.large_list(pa.large_string()))
    return pa.array(values, pa.large_string())


def _value(path: Path, line: int, row: dict[str, Any], name: str) -> str | list[str]:
    value = row.get(name, "")
    value = "" if value is None else value
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise DataError(f"{path}: line {line}: {name} is {str(value)[:60]}; give a string, or a list of strings")
    if any(_unwritable(part) for part in parts):
        raise DataError(f"{path}: line {line}: {name} holds half of a surrogate pair, which is no text; mend it")
    return value


def _unwritable(text: str) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in text) if not text.isascii() else False
