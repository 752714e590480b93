"""Exact nearest neighbors in memory-mapped features, computed in blocks of rows, with NumPy."""

import sys
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_TILE = 1024
_TILES = 64
_QUERIES = 256


class Nearest(Protocol):
    """Interface of a search engine, which finds the rows of an index with the highest scores."""

    name: str

    def top(
        self, queries: NDArray[np.float32], count: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the highest scores of each query and their rows, each (Q, K), the highest first.

        Ties go to the lower row.

        Args:
            queries: (Q, D) unit vectors.
            count: number of results per query. K is smaller if fewer rows are searched.
            rows: numbers of the rows to search, ascending. None: all rows.
        """


class Exact:
    """Exact search, which compares each query with every row in float32.

    Args:
        features: (N, D) features in half precision, which may be memory-mapped.
    """

    name = "exact"

    def __init__(self, features: NDArray[np.float16]) -> None:
        self.features = features

    def top(
        self, queries: NDArray[np.float32], count: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        total = len(self.features) if rows is None else len(rows)
        count = min(count, total)
        starts = range(0, max(len(queries), 1), _QUERIES)
        parts = [self._top_of_part(queries[start : start + _QUERIES], count, rows, total) for start in starts]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])

    def _top_of_part(
        self, queries: NDArray[np.float32], count: int, rows: NDArray[np.int64] | None, total: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        best, best_rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        # Converted rows are written into the same memory, which stays in the processor's cache.
        converted = np.zeros((_TILE, self.features.shape[1]), np.float32)
        for start in range(0, total, _TILES * _TILE):
            end = min(start + _TILES * _TILE, total)
            numbers = np.arange(start, end) if rows is None else rows[start:end]
            scores = np.empty((len(queries), end - start), np.float32)
            for first in range(start, end, _TILE):
                last = min(first + _TILE, end)
                part = self.features[first:last] if rows is None else self.features[rows[first:last]]
                as_float32(part, converted[: last - first])
                with np.errstate(invalid="ignore"):  # damaged features; `Index` refuses their scores
                    # All rows are multiplied: the rounding of a score depends on their number, and equal images
                    # should have equal scores.
                    scores[:, first - start : last - start] = (queries @ converted.T)[:, : last - first]
            found = np.broadcast_to(numbers, scores.shape)
            best, best_rows = best_of(
                np.concatenate([best, scores], axis=1), np.concatenate([best_rows, found], axis=1), count
            )
        return best, best_rows


def best_of(
    scores: NDArray[np.float32], rows: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the `count` highest scores of each query and their rows, the highest first.

    Ties go to the column that comes first. NaN scores, which come from damaged features, are replaced by infinity, so
    that the caller detects the damage.

    Args:
        scores, rows: (Q, M) scores, and the row of each score.
    """
    scores = np.where(np.isnan(scores), np.float32(np.inf), scores)
    if 0 < count < scores.shape[1]:
        least = np.partition(scores, -count, axis=1)[:, [-count]]
        kept = int((scores >= least).sum(axis=1).max(initial=0))  # more if the last score is a tie
        if kept < scores.shape[1]:
            chosen = np.sort(np.argpartition(scores, -kept, axis=1)[:, -kept:], axis=1)
            scores, rows = np.take_along_axis(scores, chosen, 1), np.take_along_axis(rows, chosen, 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


_AS_FLOAT32 = np.arange(65_536, dtype=np.uint16).view(np.float16).astype(np.float32)


def as_float32(features: NDArray[np.float16], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Convert features from half precision to float32, in the array `out` or in a new array."""
    out = np.empty(features.shape, np.float32) if out is None else out
    # Torch is three times as fast as a table, but its import takes seconds. So it is used only if already imported.
    if "torch" not in sys.modules:
        return np.take(_AS_FLOAT32, features.view(np.uint16), out=out, mode="clip")
    import torch  # waits if another thread is importing it

    torch.from_numpy(out).copy_(torch.from_numpy(features if features.flags.writeable else features.copy()))
    return out


def scores_of(
    features: NDArray[np.float16], queries: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the (Q, K) exact scores of K given rows per query.

    Args:
        features: (N, D) features of the index.
        queries: (Q, D) unit vectors.
        rows: (Q, K) row numbers.
    """
    taken = as_float32(features[rows.reshape(-1)]).reshape(*rows.shape, -1)
    return np.asarray((taken @ queries[:, :, None])[:, :, 0])


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale (…, D) vectors to unit length. Zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
