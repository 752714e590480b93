"""Ranking of scores. Higher scores rank first, and ties go to the lower index."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays

_INDICES = 1 << 32


def order_keys(scores: Float[Tensor, "R C"], first: int = 0) -> Int[Tensor, "R C"]:
    """Return an integer key for each score, so that greater keys rank first and ties go to the lower column.

    Args:
        scores: scores in float32.
        first: index of the first column, if `scores` contains only some columns.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0 converts −0 to 0
    rising = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # integers in the same order as the scores
    index = torch.arange(first, first + scores.shape[1], device=scores.device)
    return rising * _INDICES + (_INDICES - 1 - index)


def of_keys(keys: Int[Tensor, "R K"]) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """Convert the integer keys of `order_keys` back to scores and column indices."""
    index = _INDICES - 1 - (keys & (_INDICES - 1))
    rising = keys >> 32
    bits = torch.where(rising < 0, -rising | 0x80000000, rising)
    return torch.where(bits > 0x7FFFFFFF, bits - _INDICES, bits).int().view(torch.float32), index


@takes_arrays
def first_columns(scores: Float[Tensor, "R C"], count: int) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """Return the `count` highest scores of each row and their column indices, the highest score first.

    Ties go to the lower index, which `torch.topk` does not guarantee.

    Example:
        >>> first_columns(torch.tensor([[0.5, 0.9, 0.5, 0.5]]), 3)[1].tolist()
        [[1, 0, 2]]
    """
    return of_keys(order_keys(scores).topk(min(count, scores.shape[1]), dim=1).values)
