"""Find an image of an index by its location."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.errors import DataError
from clipkit.images import read_image
from clipkit.search.source import CONTENT, IMAGE


def row_at(table: pa.Table, location: str) -> int | None:
    """Return the row of the image that matches a location, or None if there is no such image.

    Args:
        table: rows of the index.
        location: location of the image in the index, the last part of this location, e.g. its file name, or the path of
            a file with the same content.

    Raises:
        DataError: several locations end with `location`.

    Example:
        >>> row_at(pa.table({"image": ["a/1.jpg", "a/2.jpg"], "content": ["c0", "ff"]}), "2.jpg")
        1
    """
    row = pc.index(table[IMAGE], location).as_py()
    if row >= 0:
        return int(row)
    matches = np.flatnonzero(pc.ends_with(table[IMAGE], f"/{location}").to_numpy())
    if len(matches) > 1:
        names = table[IMAGE].take(matches[:2]).to_pylist()
        raise DataError(
            f"{location[:200]}: fits {len(matches):,} images of the index, such as {names[0]} and {names[1]}; give a "
            "longer part of the location"
        )
    if len(matches):
        return int(matches[0])
    try:
        content = hashlib.sha256(read_image(Path(location))).hexdigest()
    except (OSError, ValueError):  # missing file, or not a file name
        return None
    row = pc.index(table[CONTENT], content).as_py()
    return int(row) if row >= 0 else None
