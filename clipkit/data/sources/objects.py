"""Rows of Python objects: lists of pairs or of rows, columns, DataFrames, and datasets of the library `datasets`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipkit.data.sources.columns import NAMES, Rows, Wanted
from clipkit.data.sources.saved import of_dataset
from clipkit.errors import DataError, one_line
from clipkit.images import kind_of, open_image

_ADVICE = (
    "give a path, hf:NAME, a list of (image, caption) or (image, label) pairs, a list of dicts, a dict of columns, a "
    "DataFrame, or a split of a dataset of the library `datasets`"
)


def read_object(data: object, wanted: Wanted) -> Rows:
    """Return the rows of a Python object, with columns found by name; paths are relative to the working directory.

    Raises:
        DataError: the object has another form, lacks a column, or holds values that are neither texts nor images.
    """
    import datasets

    name = f"{type(data).__name__} of {len(data):,} rows" if hasattr(data, "__len__") else type(data).__name__
    if isinstance(data, datasets.DatasetDict):
        raise DataError(f"a DatasetDict has the splits {', '.join(map(str, data))}; give one of them")
    if isinstance(data, datasets.Dataset):
        return of_dataset(name, data, wanted)
    try:
        dataset = _dataset(data, "label" if "label" in wanted.needed else "caption")
    except DataError:
        raise
    except Exception as error:  # mixed types, unequal lengths: errors of several libraries
        raise DataError(f"{name}: is not a table of texts and images ({one_line(error)}); {_ADVICE}") from None
    if dataset is None:
        raise DataError(f"{kind_of(data)} is not data for an evaluation; {_ADVICE}")
    return of_dataset(name, dataset, wanted)


def _dataset(data: Any, second: str) -> Any:
    """Return an object as a dataset of the library `datasets`; None if it has another form."""
    import datasets

    if isinstance(data, pa.Table):
        return datasets.Dataset(data)
    if isinstance(data, Mapping):
        columns = {str(column): list(values) for column, values in data.items()}
    elif hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas, polars
        columns = {str(column): list(data[column]) for column in data.columns}
    elif isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
        columns = {str(column): [row.get(column) for row in data] for column in data[0]}
    elif isinstance(data, Sequence) and data and all(isinstance(row, tuple | list) and len(row) == 2 for row in data):
        columns = {"image": [image for image, _ in data], second: [text for _, text in data]}
    else:
        return None
    features = {}
    for column, values in columns.items():
        if column.strip().lower() in NAMES["image"] and not all(isinstance(value, str) for value in values):
            columns[column] = [_storable(value) for value in values]
            if not all(isinstance(value, str) for value in columns[column]):
                features[column] = datasets.Image()
    dataset = datasets.Dataset.from_dict({column: v for column, v in columns.items() if column not in features})
    for column, feature in features.items():
        stored = [feature.encode_example(value) for value in columns[column]]
        dataset = dataset.add_column(column, stored).cast_column(column, feature)
    return dataset


def _storable(image: Any) -> Any:
    """Return a path as a string, and an array as an image; anything else unchanged."""
    if isinstance(image, Path):
        return str(image)
    return open_image(image) if isinstance(image, np.ndarray) else image
