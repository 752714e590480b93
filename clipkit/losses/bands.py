"""Sums over a matrix of combinations, a band of rows at a time, each made again for the gradient."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Combinations in a band. A loss holds a handful of such matrices at once, and none between forward and backward.
_HELD = 1 << 22


def sum_over_bands(rows: slice, columns: int, of_band: Callable[[slice], Tensor]) -> Tensor:
    """Σ of `of_band` over bands of `rows`, in fixed order.

    Args:
        rows: of the matrix.
        columns: of the matrix; bands are as high as memory allows.
        of_band: rows of a band to its part of the sum, a number or several.
    """
    parts = [
        checkpoint(of_band, band, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else of_band(band)
        for band in bands(rows, columns) or [rows]
    ]
    return torch.stack(parts).sum(dim=0)


def bands(rows: slice, columns: int) -> list[slice]:
    """The rows, cut."""
    height = max(1, _HELD // max(1, columns))
    return [slice(start, min(start + height, rows.stop)) for start in range(rows.start, rows.stop, height)]
