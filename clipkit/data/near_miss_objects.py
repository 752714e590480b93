"""Compositional evaluation data from Python objects: lists of dicts, dicts of columns, DataFrames and datasets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipkit.data.near_misses import GROUP, ONE_IMAGE, TWO_IMAGES, NearMisses
from clipkit.data.sequences import Strings
from clipkit.data.sources.columns import NAMES
from clipkit.data.sources.held import ObjectImages, key_of, path_of
from clipkit.data.sources.objects import columns_of, name_of_object
from clipkit.errors import DataError
from clipkit.images import kind_of


def near_misses_of(data: Any) -> NearMisses:
    """Convert a Python object to compositional evaluation data.

    The object must have the columns of SugarCrepe or Winoground (see `read_near_misses`). Images may be paths, PIL
    images, arrays or bytes.

    Raises:
        DataError: the type of the object is unsupported, or a column or a text is missing.
    """
    import datasets

    if isinstance(data, datasets.Dataset):
        columns: Mapping[str, Sequence[Any]] | None = {name: data[name] for name in data.column_names}
    else:
        columns = columns_of(data, "caption")
    if columns is None or not {"negative_caption", "caption_1"} & set(columns):
        raise DataError(
            f"{kind_of(data)} is not compositional data; give the path of a file or folder, or data with the columns "
            f"{', '.join(ONE_IMAGE)} or the columns {', '.join(TWO_IMAGES)}"
        )
    name = name_of_object(data)
    roles = TWO_IMAGES if "caption_1" in columns else ONE_IMAGE
    of_role = [_column(name, columns, role) for role in roles]
    half = len(roles) // 2
    values, texts = of_role[:half], of_role[half:]
    count = len(of_role[0])
    every = [values[side][row] for row in range(count) for side in range(half)]
    keys = [key_of(image, path_of(image)) for image in every]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    kept = sorted(first.values())
    new = {keys[place]: position for position, place in enumerate(kept)}
    captions: dict[str, int] = {}
    words = [
        [_text(name, row, roles[half + side], column[row]) for side, column in enumerate(texts)] for row in range(count)
    ]
    caption_positions = [[captions.setdefault(text, len(captions)) for text in row] for row in words]
    images = [every[place] for place in kept]
    group = next((columns[column] for column in GROUP if column in columns), [""] * count)
    return NearMisses(
        name,
        ObjectImages(name, images.__getitem__, Strings.of([path_of(image) for image in images])),
        list(captions),
        np.array([new[key] for key in keys]).reshape(count, half),
        np.array(caption_positions),
        [str(category).strip() or name for category in group],
    )


def _column(name: str, columns: Mapping[str, Sequence[Any]], role: str) -> Sequence[Any]:
    column = next((columns[known] for known in (role, *NAMES.get(role, ())) if known in columns), None)
    if column is None:
        raise DataError(f"{name}: has no column {role}; its columns are {', '.join(columns)}; add the missing column")
    if not len(column):
        raise DataError(f"{name}: has no rows; add at least one row")
    return column


def _text(name: str, row: int, role: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name}: row {row + 1} has no {role}; add the text or drop the row")
    return text.strip()
