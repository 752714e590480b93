"""Functions for WebDataset shards: group files into samples; find the image and the texts of a sample."""

import io
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
from PIL import Image

from clipkit.data.sources.columns import NAMES
from clipkit.errors import DataError, one_line
from clipkit.parsing import parse_json

# Files of a sample that may contain a role, most likely first; other roles are read from JSON only.
ENDINGS = {"caption": ("txt", "caption", "json"), "label": ("cls", "npy", "json")}

_USUAL = ("jpg", "jpeg", "png", "webp")

T = TypeVar("T")


def name_in_sample(path: str) -> tuple[str, str] | None:
    """Split the path of a file at the first dot of the file name: sample name and file ending.

    Return None if one of the two is empty.

    Example:
        >>> name_in_sample("a.b/000.seg.PNG"), name_in_sample("a/.hidden")
        (('a.b/000', 'seg.png'), None)
    """
    folder, _, name = path.rpartition("/")
    stem, dot, ending = name.partition(".")
    if not dot or not stem:
        return None
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def adjacent(files: Iterator[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T]]]:
    """Yield (sample name, files by ending) for each group of adjacent files with the same sample name."""
    key: str | None = None
    members: dict[str, T] = {}
    for path, file in files:
        named = name_in_sample(path)
        if named is None:
            continue
        if named[0] != key:
            if key is not None:
                yield key, members
            key, members = named[0], {}
        members[named[1]] = file
    if key is not None:
        yield key, members


def collected(files: Iterator[tuple[str, T]]) -> list[tuple[str, dict[str, T]]]:
    """Return (sample name, files by ending) for each sample, whose files need not be adjacent.

    A second file with the same sample name and ending begins a new sample with the same name.
    """
    samples: list[tuple[str, dict[str, T]]] = []
    newest: dict[str, dict[str, T]] = {}
    for path, file in files:
        named = name_in_sample(path)
        if named is None:
            continue
        key, ending = named
        members = newest.get(key)
        if members is None or ending in members:
            members = newest[key] = {}
            samples.append((key, members))
        members[ending] = file
    return samples


def image_endings(members: Mapping[str, T]) -> list[str]:
    """Return the file endings of a sample that are image formats, the most common formats first."""
    known = Image.registered_extensions()
    found = [ending for ending in members if f".{ending}" in known]
    return sorted(found, key=lambda ending: _USUAL.index(ending) if ending in _USUAL else len(_USUAL))


def has_dots(members: Mapping[str, T]) -> bool:
    """Return whether a sample lacks an image because of a second dot in a file name, as in `photo.1.jpg`."""
    known = Image.registered_extensions()
    return not image_endings(members) and any(f".{ending.rpartition('.')[2]}" in known for ending in members)


def values_of_role(where: str, contents: Mapping[str, bytes], role: str, given: str | None = None) -> list[str] | None:
    """Return the values of a role, e.g. the captions, in the files of a sample; None if there are none.

    Args:
        where: location of the sample, for messages.
        contents: files of the sample by ending.
        role: a role of texts or labels.
        given: ending or JSON key that the user named for the role; None: use the accepted names.

    Raises:
        DataError: a file is not UTF-8, or not JSON.
    """
    endings = ENDINGS.get(role, ("json",)) if given is None else (given.lower(), "json")
    keys = NAMES[role] if given is None else (given,)
    for ending in endings:
        if ending not in contents:
            continue
        if ending == "npy" and role == "group":
            return [_first_number(f"{where}.npy", contents[ending])]
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
            values = parse_json(text)
        except ValueError as error:
            raise DataError(f"{where}.json: is not JSON ({one_line(error)}); fix the file") from None
        name = next((name for name in keys if isinstance(values, dict) and name in values), None)
        if name is None:
            continue
        value = values[name] if isinstance(values[name], list) else [values[name]]
        return [str(item) for item in value if item is not None]
    return None


def caption_choices(where: str, contents: Mapping[str, bytes]) -> list[str]:
    """Return the file endings and JSON keys of a sample that contain captions. Readers use only the first.

    Endings and keys that repeat the captions of the first are left out.

    Example:
        >>> caption_choices("s", {"txt": b"a dog", "json": b'{"caption": "a dog", "title": "Rex"}'})
        ['txt', 'title']
    """
    names = [ending for ending in ENDINGS["caption"] if ending in contents and ending != "json"]
    names += NAMES["caption"] if "json" in contents else ()
    values = {name: values_of_role(where, contents, "caption", name) for name in names}
    filled = [name for name in values if values[name]]
    return [name for name in filled if name == filled[0] or values[name] != values[filled[0]]]


def _classes_of(content: bytes) -> list[str] | None:
    """Return the class numbers in a .npy file with a multi-hot vector, the multilabel format of CLIP_benchmark.

    For other content, return None.
    """
    try:
        vector = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    if vector.ndim != 1 or not np.isin(vector, (0, 1)).all():
        return None
    return [str(position) for position in np.flatnonzero(vector)]


def _first_number(where: str, content: bytes) -> str:
    """Return the first number in a .npy file as a string. In DataComp's datasets, it is the group of an image.

    Raises:
        DataError: the file is not an array of numbers.
    """
    try:
        return str(int(np.load(io.BytesIO(content), allow_pickle=False).ravel()[0]))
    except (ValueError, OSError, EOFError, IndexError) as error:
        raise DataError(
            f"{where}: is not an array of numbers ({one_line(error)}); choose another column for the groups"
        ) from None
