"""Exact nearest neighbors in memory-mapped features, computed in blocks of 2,048 rows."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_TILE = 2048
_TILES = 32
_QUERIES = 256


class Nearest(Protocol):
    """Interface of a method that finds the rows of an index with the highest scores."""

    name: str

    def top(
        self, queries: Float[Tensor, "Q D"], count: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
        """Return the scores and row numbers of the best rows for each query, the best first; at equal scores, the lower
        row first.

        Args:
            queries: unit vectors.
            count: number of rows per query; K is smaller if there are fewer rows.
            rows: rows to search in, ascending; None: all.
        """


class Exact:
    """Exact search: queries are compared with every row, in float32.

    Args:
        features: (N, D) in half precision, memory-mapped or not.
    """

    name = "exact"

    def __init__(self, features: NDArray[np.float16]) -> None:
        self.features = features

    def top(
        self, queries: Float[Tensor, "Q D"], count: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
        total = len(self.features) if rows is None else len(rows)
        count = min(count, total)
        parts = [self._few(part, count, rows, total) for part in queries.split(_QUERIES) if len(part)]
        if not parts:
            return torch.empty(0, count), torch.empty(0, count, dtype=torch.int64)
        return torch.cat([scores for scores, _ in parts]), torch.cat([found for _, found in parts])

    def _few(self, queries: Tensor, count: int, rows: NDArray[np.int64] | None, total: int) -> tuple[Tensor, Tensor]:
        best, best_rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        converted = torch.empty(_TILE, self.features.shape[1])
        for start in range(0, total, _TILES * _TILE):
            end = min(start + _TILES * _TILE, total)
            numbers = torch.arange(start, end) if rows is None else torch.from_numpy(rows[start:end])
            scores = torch.empty(len(queries), end - start)
            for first in range(start, end, _TILE):
                last = min(first + _TILE, end)
                part = self.features[first:last] if rows is None else self.features[rows[first:last]]
                # Write into the same few megabytes, which stay in the CPU cache: new memory takes ten times as long.
                tile = converted[: last - first].copy_(_tensor(part))
                torch.mm(queries, tile.T, out=scores[:, first - start : last - start])
            best = torch.cat([best, scores], dim=1)
            best_rows = torch.cat([best_rows, numbers.expand(len(queries), -1)], dim=1)
            best, best_rows = _best(best, best_rows, count)
        return best, best_rows


def _best(scores: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of each query with their rows, highest first; of equal scores the first."""
    kept = min(count, scores.shape[1])
    if 0 < count < scores.shape[1]:
        least = scores.topk(count, dim=1).values[:, -1:]
        kept = int((scores >= least).sum(dim=1).max())  # more than `count` if the last score is a tie
    chosen = scores.topk(kept, dim=1).indices.sort(dim=1).values
    scores, rows = scores.gather(1, chosen), rows.gather(1, chosen)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return scores.gather(1, order), rows.gather(1, order)


def as_float32(features: NDArray[np.float16]) -> Tensor:
    """Return stored features as a float32 tensor. Torch converts them many times faster than numpy."""
    return _tensor(features).float()


def _tensor(features: NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(features if features.flags.writeable else features.copy())


def scores_of(features: NDArray[np.float16], queries: Float[Tensor, "Q D"], rows: Int[Tensor, "Q K"]) -> Tensor:
    """Return the exact scores of given rows for each query."""
    taken = as_float32(features[rows.numpy().reshape(-1)])
    return (taken.view(*rows.shape, -1) @ queries[:, :, None])[:, :, 0]
