"""Comparison of two indexes of the same images, e.g. made with a model before and after fine-tuning.

Two ranked lists are compared by the rank-biased overlap of their first k entries, extrapolated with p = 0.9:

    X_k / k · p^k + (1 − p) / p · Σ_{d = 1}^{k} X_d / d · p^d

X_d is the number of images that are among the first d of both lists. The overlap is 1 for equal lists and 0 for lists
without a common image. The first results have the most weight. Source: Webber, Moffat and Zobel 2010.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.sequences import evenly_spaced
from clipkit.errors import DataError
from clipkit.search.index import Index
from clipkit.search.nearest import as_float32, unit_vectors
from clipkit.search.source import CAPTIONS, CONTENT, IMAGE

DEPTH = 10
"""Number of first results that are compared."""
MOST_QUERIES = 2000
_RANKED = 100  # number of results in which the image of a caption is looked up
_BLOCK = 256
_P = 0.9


@dataclass(frozen=True)
class Difference:
    """A query, with measures of how well its results in two indexes agree."""

    text: str
    overlap: float
    """Rank-biased overlap of the first ten results."""
    common: int
    """Number of images that are among the first ten results of both."""
    row: int | None = None
    """Row of the caption's image in the first index; None for a query that is not a caption."""
    ranks: tuple[int | None, int | None] = (None, None)
    """Rank of this image in both searches, from 1; None if it is not among the first 100."""


def rank_biased_overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the rank-biased overlap of two ranked lists without repeated entries.

    The longer list is cut to the length of the shorter list.

    Example:
        >>> rank_biased_overlap([1, 2, 3], [1, 2, 3]), rank_biased_overlap([1, 2], [3, 4])
        (1.0, 0.0)
    """
    depth = min(len(one), len(other))
    if depth == 0:
        return 1.0 if len(one) == len(other) else 0.0
    shares = [len(set(one[:d]) & set(other[:d])) / d for d in range(1, depth + 1)]
    weighted = sum(share * _P**d for d, share in enumerate(shares, 1))
    return round(shares[-1] * _P**depth + (1 - _P) / _P * weighted, 12)


class Pair:
    """Two indexes of the same images, with rows matched by image.

    Rows match if their image files have the same content. A row without such a match is matched by its location.

    Raises:
        DataError: the indexes have no image in common.
    """

    def __init__(self, one: Index, other: Index) -> None:
        self.indexes = (one, other)
        self.rows = (_positions(one, one), _positions(one, other))
        """For each row of both indexes, the row of the first index that has the same image; -1: there is none."""
        self._row_in_other = np.full(len(one), -1, np.int64)
        matched = np.flatnonzero(self.rows[1] >= 0)[::-1]  # if a row has several matching rows, use the first one
        self._row_in_other[self.rows[1][matched]] = matched
        self.common = int((self._row_in_other >= 0).sum())
        if not self.common:
            raise DataError(
                f"{one.path} and {other.path}: have no image in common, neither by content nor by location; give "
                "two indexes of the same data"
            )

    def row_in_other(self, row: int) -> int | None:
        """Return the row of the second index that has the same image as a row of the first index.

        The result is None if the second index does not have the image.
        """
        found = int(self._row_in_other[self.rows[0][self.indexes[0].row_of(row)]])
        return found if found >= 0 else None

    def agreement(self, one: Sequence[int], other: Sequence[int]) -> tuple[float, int]:
        """Compare the first ten distinct images of two ranked lists of rows.

        Args:
            one: rows of the first index.
            other: rows of the second index.

        Returns:
            The rank-biased overlap, and the number of images that are among the first ten of both lists.
        """
        names = [self._names(0, one), self._names(1, other)]
        return rank_biased_overlap(*names), len(set(names[0]) & set(names[1]))

    def _names(self, number: int, rows: Sequence[int]) -> list[int]:
        """Return IDs of the first ten distinct images in a ranked list of rows of index `number` (0 or 1).

        The ID is the row of the image in the first index, or a negative number if the first index lacks the image.
        """
        matched = [int(self.rows[number][row]) for row in rows]
        named = [name if name >= 0 else -1 - row for name, row in zip(matched, rows, strict=True)]
        return list(dict.fromkeys(named))[:DEPTH]

    def differences(
        self, queries: Sequence[str] | None = None, progress: Callable[[float], None] | None = None
    ) -> list[Difference]:
        """Search both indexes for each query, and return the queries by increasing overlap of the results.

        Args:
            queries: texts. None: up to 2,000 captions that both indexes have, evenly spaced.
            progress: called from time to time with the completed share (0 to 1) of the work.

        Raises:
            DataError: no queries are given, and the indexes have no caption in common.
        """
        if queries is None:
            texts, features, images = self._captions()
        else:
            texts = list(queries)
            features = (self.indexes[0].encoder.encode_text(texts), self.indexes[1].encoder.encode_text(texts))
            images = [None] * len(texts)
        found = []
        for start in range(0, len(texts), _BLOCK):
            part = slice(start, start + _BLOCK)
            ranked = [
                index.nearest.top(vectors[part], _RANKED)[1].tolist()
                for index, vectors in zip(self.indexes, features, strict=True)
            ]
            for text, image, one, other in zip(texts[part], images[part], *ranked, strict=True):
                overlap, common = self.agreement(one, other)
                ranks = (self._rank(0, one, image), self._rank(1, other, image))
                found.append(Difference(text, overlap, common, image, ranks))
            if progress is not None:
                progress(min(part.stop, len(texts)) / len(texts))
        return sorted(found, key=lambda entry: entry.overlap)

    def _rank(self, number: int, rows: Sequence[int], image: int | None) -> int | None:
        matched = self.rows[number][rows].tolist()
        return matched.index(image) + 1 if image is not None and image in matched else None

    def _captions(
        self,
    ) -> tuple[list[str], tuple[NDArray[np.float32], NDArray[np.float32]], list[int | None]]:
        """Return up to 2,000 captions that both indexes have.

        Returns:
            The captions, their (Q, D) and (Q, E) features in the first and second index, and the row of each caption's
            image in the first index.
        """
        one, other = self.indexes
        number_in_other = {text: number for number, text in enumerate(other.texts)}
        captions = one.rows[CAPTIONS].combine_chunks()
        row_of: dict[str, int] = {}
        rows = self.rows[0][pc.list_parent_indices(captions).to_numpy()].tolist()
        for text, row in zip(pc.list_flatten(captions).to_pylist(), rows, strict=True):
            row_of.setdefault(text, row)
        shared = [n for n, text in enumerate(one.texts) if text in number_in_other and text in row_of]
        if not shared:
            raise DataError(
                f"{one.path} and {other.path}: the indexes have no caption in common; write queries to a text file, "
                "one per line, and add --queries F.txt"
            )
        chosen = [shared[n] for n in evenly_spaced(len(shared), MOST_QUERIES)]
        texts = [one.texts[n] for n in chosen]
        numbers = [number_in_other[text] for text in texts]
        stored = (one.text_features[chosen], other.text_features[numbers])
        features = (unit_vectors(as_float32(stored[0])), unit_vectors(as_float32(stored[1])))
        return texts, features, [row_of[text] for text in texts]


def _positions(one: Index, other: Index) -> NDArray[np.int64]:
    """For each row of `other`, return the first row of `one` with the same image, or -1 if there is none.

    The same image means the same content or, if no row has this content, the same location.
    """
    found = np.full(len(other), -1, np.int64)
    for column in (IMAGE, CONTENT):  # a match by content replaces a match by location
        known = pc.index_in(other.rows[column], value_set=one.rows[column].combine_chunks())
        numbers = pc.fill_null(known.cast(pa.int64()), -1).to_numpy()
        found = np.where(numbers >= 0, numbers, found)
    # Copies of an image count as one image: use the first row with the same content.
    if one is not other:
        first = _positions(one, one)
        found[found >= 0] = first[found[found >= 0]]
    return found
