"""Sums over the rows of a G × G matrix, one band of rows at a time; the backward pass computes each band again."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Number of elements of a band. A loss holds a few matrices of this size at once, and none between forward and backward.
_HELD = 1 << 22


def sum_over_bands(rows: slice, columns: int, of_band: Callable[[slice], Tensor]) -> Tensor:
    """Return the sum of `of_band` over bands of `rows`, in fixed order.

    Args:
        rows: rows of the matrix.
        columns: number of columns, which determines the number of rows in a band.
        of_band: function that takes the rows of a band and returns their part of the sum, a tensor of any shape.
    """
    parts = [
        checkpoint(of_band, band, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else of_band(band)
        for band in bands(rows, columns) or [rows]
    ]
    return torch.stack(parts).sum(dim=0)


def bands(rows: slice, columns: int) -> list[slice]:
    """Split the rows into bands of limited size."""
    height = max(1, _HELD // max(1, columns))
    return [slice(start, min(start + height, rows.stop)) for start in range(rows.start, rows.stop, height)]
