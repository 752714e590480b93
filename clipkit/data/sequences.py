"""Long lists that take little memory: captions and image paths in Arrow's columns, not a Python object each."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.sources.remote import Remote
from clipkit.images import Stored

T = TypeVar("T")
_AT_ONCE = 10_000


class Strings(Sequence[str]):
    """Strings in one Arrow column.

    Example:
        >>> strings = Strings.of(["a dog", "a cat"])
        >>> strings[1], list(strings), strings == ["a dog", "a cat"]
        ('a cat', ['a dog', 'a cat'], True)
    """

    def __init__(self, column: pa.Array) -> None:
        self.column = column

    @classmethod
    def of(cls, strings: Sequence[str]) -> "Strings":
        """From any sequence."""
        return strings if isinstance(strings, Strings) else cls(pa.array(strings, pa.large_string()))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            found = (
                self.column[start:stop].to_pylist() if step == 1 else [self[row] for row in range(start, stop, step)]
            )
            return list(found)
        return str(self.column[int(place)].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings.of({list(self[:3])}{' …' * (len(self) > 3)})"

    def take(self, rows: NDArray[np.int64]) -> "Strings":
        """Those of these rows."""
        return Strings(self.column.take(pa.array(rows)))


class Files(Sequence[Path | Stored]):
    """ImageLike files by their names, relative to a folder; those with `://` in them are read from where they point."""

    def __init__(self, folder: Path, names: Strings) -> None:
        self.folder = folder
        self.names = names

    @classmethod
    def of(cls, folder: Path, names: pa.Array) -> "Files":
        """By a column of names."""
        return cls(folder, Strings(names))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Path | Stored: ...
    @overload
    def __getitem__(self, place: slice) -> list[Path | Stored]: ...
    def __getitem__(self, place: int | slice) -> Path | Stored | list[Path | Stored]:
        if isinstance(place, slice):
            return [self._file(name) for name in self.names[place]]
        return self._file(self.names[place])

    def _file(self, name: str) -> Path | Stored:
        return Remote(name) if "://" in name else self.folder / name


class Chosen(Sequence[T]):
    """Some of a sequence, in another order; T is what it holds."""

    def __init__(self, whole: Sequence[T], places: NDArray[np.int64]) -> None:
        self.whole = whole
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self.whole[own] for own in self.places[place].tolist()]
        return self.whole[int(self.places[place])]


class Joined(Sequence[T]):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[own] for own in range(*place.indices(len(self)))]
        place = range(len(self))[int(place)]
        part = int(np.searchsorted(self.ends, place, side="right"))
        return self.parts[part][place - int(self.ends[part]) + len(self.parts[part])]


def longest(strings: Sequence[str]) -> str:
    """The first of the longest.

    Example:
        >>> longest(["a", "dog", "cat"])
        'dog'
    """
    lengths = pc.utf8_length(Strings.of(strings).column)
    return strings[pc.index(lengths, pc.max(lengths)).as_py()]


def first_places(keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the distinct keys each row has, and the row where each comes first, in that order.

    Example:
        >>> which, first = first_places(pa.array(["b", "a", "b"]))
        >>> which.tolist(), first.tolist()
        ([0, 1, 0], [0, 1])
    """
    encoded: Any = keys.dictionary_encode()
    which = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    count = len(encoded.dictionary)
    del encoded
    pa.default_memory_pool().release_unused()  # of a million strings, a quarter of a gigabyte
    first = np.full(count, -1, dtype=np.int64)
    first[which[::-1]] = np.arange(len(which) - 1, -1, -1)  # the last to be written is the first row
    return which, first
