"""Class names in the metadata of a table, where the library `datasets` stores them."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipkit.data.sources.columns import ClassList
from clipkit.errors import DataError
from clipkit.parsing import parse_json


def recorded_classes(metadata: Mapping[bytes, bytes] | None, column: str | None) -> ClassList | None:
    """Return the class names of a column from the metadata of an Arrow or Parquet schema; None if there are none."""
    try:
        feature: Any = parse_json((metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, ValueError, TypeError):
        return None
    is_list = isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature)
    if is_list:
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel" or not feature.get("names"):
        return None
    return ClassList([str(name).strip() for name in feature["names"]], is_multilabel=is_list)


def whole_numbers(column: Any) -> Any:
    """Convert a column of floats to integers, with null for NaN; return other columns unchanged.

    pandas stores integers with missing values as floats. A column with fractions is not converted.
    """
    if not pa.types.is_floating(column.type):
        return column
    try:
        return pc.if_else(pc.is_finite(column), column, None).cast(pa.int64())
    except pa.ArrowInvalid:  # some values are fractions
        return column


def named(name: str, column: pa.ChunkedArray, classes: ClassList) -> pa.Array:
    """Replace class numbers, or lists of class numbers, by class names; null and negative numbers become null.

    Args:
        name: name of the source, for messages.
        column: class numbers from 0; lists of class numbers if `classes.is_multilabel`.
        classes: classes with their names.

    Raises:
        DataError: a class number has no class name.
    """
    whole = column.combine_chunks()
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    is_list = classes.is_multilabel
    numbers = pc.list_flatten(whole) if is_list else whole
    numbers = pc.if_else(pc.greater_equal(numbers, 0), numbers, None).cast(pa.int64())
    assert classes.labels is not None
    highest = pc.max(numbers).as_py()
    if highest is not None and highest >= len(classes.labels):
        raise DataError(
            f"{name}: has the class number {highest}, but only {len(classes.labels)} class names; correct the class "
            "numbers (the first class has number 0), or add the missing class names"
        )
    names = pa.array(classes.labels, pa.large_string()).take(numbers)
    if not is_list:
        return names
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy().cumsum()
    return pa.LargeListArray.from_arrays(pa.array([0, *lengths.tolist()], pa.int64()), names)
