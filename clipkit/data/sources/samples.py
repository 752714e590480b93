"""Samples of WebDataset shards: which files form one, which of them is the image, and what its texts are."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
from PIL import Image

from clipkit.data.sources.columns import NAMES
from clipkit.errors import DataError, one_line

# Files of a sample that may contain a role, most likely first; other roles are read from JSON only.
ENDINGS = {"caption": ("txt", "caption", "json"), "label": ("cls", "npy", "json")}

T = TypeVar("T")


def grouped(files: Iterator[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T]]]:
    """Group adjacent files with the same path up to the first dot of the file name.

    Yield their members by extension.
    """
    key: str | None = None
    members: dict[str, T] = {}
    for path, file in files:
        folder, _, name = path.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not dot or not stem:
            continue
        current = f"{folder}/{stem}" if folder else stem
        if current != key:
            if key is not None:
                yield key, members
            key, members = current, {}
        members[ending.lower()] = file
    if key is not None:
        yield key, members


def image_among(members: Mapping[str, T]) -> T | None:
    """Return the first file of a sample with the extension of an image format."""
    endings = Image.registered_extensions()
    return next((file for ending, file in members.items() if f".{ending}" in endings), None)


def values_of_role(where: str, contents: Mapping[str, bytes], role: str) -> list[str] | None:
    """Return the values of a role in the files of a sample (given by extension), or None if there are none.

    Raises:
        DataError: a file is not UTF-8, or not JSON.
    """
    for ending in ENDINGS.get(role, ("json",)):
        if ending not in contents:
            continue
        if ending == "npy":
            classes = _classes_of(contents[ending])
            if classes is not None:
                return classes
            continue
        try:
            text = contents[ending].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}.{ending}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
        if ending != "json":
            return [text.strip()]
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}.json: is not JSON ({one_line(error)}); fix it") from None
        name = next((name for name in NAMES[role] if isinstance(values, dict) and name in values), None)
        if name is None:
            continue
        value = values[name] if isinstance(values[name], list) else [values[name]]
        return [str(item) for item in value if item is not None]
    return None


def _classes_of(content: bytes) -> list[str] | None:
    """Return the positions of the ones in a 0/1 vector (the multilabel format of CLIP_benchmark).

    The result is None for other content.
    """
    try:
        vector = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    if vector.ndim != 1 or not np.isin(vector, (0, 1)).all():
        return None
    return [str(position) for position in np.flatnonzero(vector)]
