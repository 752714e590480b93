"""Reader of Python objects: lists of pairs or dicts, dicts of columns, DataFrames, torch or Hugging Face datasets."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from clipkit.data.sequences import Strings
from clipkit.data.sources.choice import PEEKED
from clipkit.data.sources.columns import Rows, Wanted
from clipkit.data.sources.held import ObjectImages, key_of, path_of
from clipkit.data.sources.saved import of_dataset, of_table
from clipkit.data.workers import lost_workers, start_worker
from clipkit.errors import DataError, one_line
from clipkit.images import Held, kind_of

_ADVICE = (
    "give a path, hf:NAME, a sequence or torch Dataset of (image, caption) or (image, label) pairs or of dicts, a dict "
    "of columns, a DataFrame, or a split of a dataset of the library `datasets`"
)
_MANY = 1000  # number of rows from which worker processes read the texts of a torch Dataset
_PROCESSES = 4
_PEEKED_ITEMS = 3


def name_of_object(data: object) -> str:
    """Return a description of an object for messages, e.g. "list of 16 rows"."""
    return f"{type(data).__name__} of {len(data):,} rows" if hasattr(data, "__len__") else type(data).__name__


def read_object(data: object, wanted: Wanted) -> Rows:
    """Return the rows of a Python object. Columns are found by name; paths are relative to the working directory.

    Images are not copied; each image is decoded when it is used. If the object creates its rows on access, e.g. a torch
    Dataset, the texts of all rows are read once in advance.

    Raises:
        DataError: the type of the object is unsupported, a column is missing, or a value is neither a text nor an
            image.
    """
    import datasets

    name = name_of_object(data)
    if isinstance(data, datasets.DatasetDict):
        raise DataError(f"a DatasetDict has the splits {', '.join(map(str, data))}; give one of them")
    if isinstance(data, pa.Table):
        data = datasets.Dataset(data)
    if isinstance(data, datasets.Dataset):
        return of_dataset(name, data, wanted)
    second = "label" if "label" in wanted.needed else "caption"
    try:
        columns = columns_of(data, second)
        if columns is not None:
            return _of_columns(name, columns, wanted)
        if _makes_rows(data):
            return _of_items(name, data, second, wanted)
    except DataError:
        raise
    except Exception as error:  # mixed types, unequal lengths: errors of several libraries, or of the user's dataset
        raise DataError(f"{name}: is not a table of texts and images ({one_line(error)}); {_ADVICE}") from None
    length = "" if hasattr(data, "__len__") or not hasattr(data, "__iter__") else ", because it has no length"
    raise DataError(f"{kind_of(data)} is not data for training or evaluation{length}; {_ADVICE}")


def columns_of(data: Any, second: str) -> dict[str, list[Any]] | None:
    """Return the columns of a table in memory, e.g. a DataFrame or a list of dicts, without copying values.

    Args:
        data: the object.
        second: name of the column of the second items, e.g. caption, if the object is a list of (image, item) pairs.

    Returns:
        Column name -> values; None if the object is not such a table.
    """
    if isinstance(data, Mapping):
        return {str(column): list(values) for column, values in data.items()}
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas, polars
        return {str(column): list(data[column]) for column in data.columns}
    if isinstance(data, list | tuple) and data and all(isinstance(row, Mapping) for row in data):
        return {str(column): [row.get(column) for row in data] for column in data[0]}
    if isinstance(data, list | tuple) and data and all(isinstance(row, tuple | list) and len(row) == 2 for row in data):
        return {"image": [image for image, _ in data], second: [text for _, text in data]}
    return None


def _of_columns(name: str, columns: Mapping[str, list[Any]], wanted: Wanted) -> Rows:
    if len(lengths := {len(values) for values in columns.values()}) > 1:
        raise ValueError(f"its columns have {' and '.join(map(str, sorted(lengths)))} rows")
    names = wanted.columns_among(name, list(columns), lambda column: _peeked(columns[column][:PEEKED]))
    texts = {names[role]: columns[names[role]] for role in names if role != "image"}
    if "image" not in names:
        return of_table(name, Path(), pa.table(texts), names)
    images = columns[names["image"]]
    paths = [path_of(image) for image in images]
    keys = [_key(name, row, image, path) for row, (image, path) in enumerate(zip(images, paths, strict=True), 1)]
    return _rows(name, names, texts, paths, keys, images.__getitem__)


def _key(name: str, row: int, image: Any, path: str) -> str:
    try:
        return key_of(image, path)
    except DataError as error:
        raise DataError(f"{name}, row {row}: {error}, or drop the row") from None


def _makes_rows(data: Any) -> bool:
    """Return whether an object creates rows (pairs or dicts) on access, as a torch Dataset does."""
    if isinstance(data, str | bytes | list | tuple) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return False
    first = data[0] if len(data) else None
    return isinstance(first, Mapping) or (isinstance(first, tuple | list) and len(first) == 2)


def _of_items(name: str, data: Any, second: str, wanted: Wanted) -> Rows:
    first = [_row(data[position], second) for position in range(min(len(data), _PEEKED_ITEMS))]
    names = wanted.columns_among(name, list(first[0]), lambda column: _peeked([row.get(column) for row in first]))
    columns = [column for role, column in names.items() if role != "image"]
    image = names.get("image")
    texts_of_rows = _texts_of(_Texts(data, second, columns, image))
    hidden = None if len(data) >= _MANY else True  # None: shown only on a terminal
    read = list(tqdm(texts_of_rows, f"texts of {name}", len(data), unit=" rows", disable=hidden, leave=False))
    texts = {column: [row[position] for row in read] for position, column in enumerate(columns, 1)}
    if image is None:
        return of_table(name, Path(), pa.table(texts), names)
    paths = [row[0] for row in read]
    keys = [path or f"row {row}" for row, path in enumerate(paths)]
    return _rows(name, names, texts, paths, keys, _ImageOf(data, second, image))


def _rows(
    name: str,
    names: dict[str, str],
    texts: dict[str, list[Any]],
    paths: list[str],
    keys: list[str],
    fetch: Callable[[int], Any],
) -> Rows:
    """Return rows with the given texts and images.

    Args:
        name: name of the object, for messages.
        names: role -> column name.
        texts: column name -> texts.
        paths: path of each image; "" for an image that is not a file.
        keys: values that are equal for rows with the same image.
        fetch: function from a row number to the image.
    """
    of_texts = {role: column for role, column in names.items() if role != "image"}
    if paths and all(paths):
        return of_table(name, Path(), pa.table({**texts, names["image"]: paths}), names)
    rows = of_table(name, Path(), pa.table(texts), of_texts)
    images = ObjectImages(name, fetch, Strings.of(paths))
    return replace(rows, images=images, keys=pa.array(keys, pa.large_string()), found=names)


def _peeked(values: Sequence[Any]) -> list[Any]:
    """Return values as `rank_of` expects them: b"" instead of an image, and a string instead of a Path."""
    return [_peeked_value(value) for value in values]


def _peeked_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return b"" if isinstance(value, Image.Image | np.ndarray | Tensor | bytes | Held) else value


def _row(item: Any, second: str) -> Mapping[str, Any]:
    return item if isinstance(item, Mapping) else {"image": item[0], second: item[1]}


@dataclass(frozen=True)
class _ImageOf:
    """Function from a row number to the image; picklable for worker processes, if the dataset is."""

    data: Any
    second: str
    column: str

    def __call__(self, row: int) -> Any:
        return _row(self.data[row], self.second)[self.column]


@dataclass(frozen=True)
class _Texts(Dataset[tuple[Any, ...]]):
    """Dataset with a tuple per row: the path of the image ("" if it is not a file), and the texts."""

    data: Any
    second: str
    columns: Sequence[str]
    image: str | None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        row = _row(self.data[position], self.second)
        path = "" if self.image is None else path_of(row[self.image])
        return (path, *(_text(row.get(column)) for column in self.columns))


def _text(value: Any) -> Any:
    """Convert a text or label to a plain Python value; an array or tuple becomes a list."""
    if isinstance(value, Tensor | np.generic | np.ndarray):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _texts_of(texts: _Texts) -> Iterator[tuple[Any, ...]]:
    """Yield the texts of all rows in order; if there are many rows, worker processes read them."""
    workers = min(_PROCESSES, os.cpu_count() or 1) if len(texts) >= _MANY else 0
    loader = DataLoader(
        texts,
        batch_size=64,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # not the global generator, whose state is part of the run
    )
    with lost_workers(loader):
        for batch in loader:
            yield from batch


def _same(batch: Any) -> Any:
    return batch
