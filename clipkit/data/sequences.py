"""Sequences of captions and images that need little memory, because Arrow columns store the strings."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.sources.remote import Remote, begin
from clipkit.data.sources.urls import is_address
from clipkit.images import Stored

T = TypeVar("T")
_CHUNK = 10_000


class Items(Sequence[T], ABC):
    """Base class of sequences. A subclass implements `__len__` and `_at`."""

    @abstractmethod
    def _at(self, position: int) -> T:
        """Return the item at a position in 0 … length − 1."""

    def _several(self, positions: range) -> list[T]:
        return [self._at(position) for position in positions]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        positions = range(len(self))
        return self._several(positions[index]) if isinstance(index, slice) else self._at(positions[index])


class Strings(Items[str]):
    """Sequence of strings, stored in one Arrow column.

    Example:
        >>> strings = Strings.of(["a dog", "a cat"])
        >>> strings[1], list(strings), strings == ["a dog", "a cat"]
        ('a cat', ['a dog', 'a cat'], True)
    """

    def __init__(self, column: pa.Array) -> None:
        self.column = column

    @classmethod
    def of(cls, strings: Sequence[str]) -> "Strings":
        """Convert any sequence of strings to `Strings`."""
        return strings if isinstance(strings, Strings) else cls(pa.array(strings, pa.large_string()))

    def __len__(self) -> int:
        return len(self.column)

    def _at(self, position: int) -> str:
        return str(self.column[position].as_py())

    def _several(self, positions: range) -> list[str]:
        return list(self.column.take(pa.array(np.array(positions, np.int64))).to_pylist())  # faster than a loop

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings.of({list(self[:3])}{' …' * (len(self) > 3)})"

    def take(self, rows: NDArray[np.int64]) -> "Strings":
        """Return the strings at the given positions."""
        return Strings(self.column.take(pa.array(rows)))


class Files(Items[Path | Stored]):
    """Sequence of image files. Each name is a path relative to `folder`, or a URL."""

    def __init__(self, folder: Path, names: Strings) -> None:
        if pc.any(pc.match_substring(names.column, "://")).as_py():
            begin()  # called before processes are forked, so that they share the downloaded images
        self.folder = folder
        self.names = names

    @classmethod
    def of(cls, folder: Path, names: pa.Array) -> "Files":
        """Create the sequence from an Arrow column of names."""
        return cls(folder, Strings(names))

    def __len__(self) -> int:
        return len(self.names)

    def _at(self, position: int) -> Path | Stored:
        name = self.names[position]
        return Remote(name) if is_address(name) else self.folder / name


class Chosen(Items[T]):
    """View of the items of a sequence at the given positions, in this order."""

    def __init__(self, whole: Sequence[T], positions: NDArray[np.int64]) -> None:
        self.whole = whole
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def _at(self, position: int) -> T:
        return self.whole[int(self.positions[position])]


class Joined(Items[T]):
    """View of several sequences as one concatenated sequence."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _at(self, position: int) -> T:
        part = int(np.searchsorted(self.ends, position, side="right"))
        return self.parts[part][position - int(self.ends[part]) + len(self.parts[part])]


def chosen(images: Sequence[Path | Stored], positions: NDArray[np.int64]) -> Sequence[Path | Stored]:
    """Return the images at the given positions, in this order."""
    if len(positions) == len(images) and (positions == np.arange(len(positions))).all():
        return images
    if isinstance(images, Files):
        return Files(images.folder, images.names.take(positions))
    return Chosen(images, positions)


def longest(strings: Sequence[str]) -> str:
    """Return the longest string. Ties go to the first string.

    Example:
        >>> longest(["a", "dog", "cat"])
        'dog'
    """
    lengths = pc.utf8_length(Strings.of(strings).column)
    return strings[pc.index(lengths, pc.max(lengths)).as_py()]


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced positions in 0 … `count` − 1, including the first and the last.

    Example:
        >>> evenly_spaced(9, 3), evenly_spaced(2, 3)
        ([0, 4, 8], [0, 1])
    """
    positions: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
    return positions


def first_positions(keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Assign the indices 0 … K − 1 to the K distinct values of a column, in order of first occurrence.

    Returns:
        (R,) index of the value in each row, and (K,) row in which each distinct value first occurs.

    Example:
        >>> numbers, first = first_positions(pa.array(["b", "a", "b"]))
        >>> numbers.tolist(), first.tolist()
        ([0, 1, 0], [0, 1])
    """
    encoded: Any = keys.dictionary_encode()
    numbers = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    count = len(encoded.dictionary)
    del encoded
    pa.default_memory_pool().release_unused()  # free a quarter of a gigabyte per million strings
    first = np.full(count, -1, dtype=np.int64)
    # In reverse order, so that the first row of each number is written last.
    first[numbers[::-1]] = np.arange(len(numbers) - 1, -1, -1)
    return numbers, first
