"""Sums over a G × G matrix in bands of rows, so that the whole matrix is never in memory.

The backward pass computes each band again.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Maximum number of elements in a band. A loss needs memory for a few bands, and for none after its forward pass.
_HELD = 1 << 22


def sum_over_bands(rows: slice, columns: int, of_band: Callable[[slice], Tensor]) -> Tensor:
    """Sum over some rows of a matrix, in bands of rows to limit the memory.

    Args:
        rows: rows to sum over.
        columns: number of columns of the matrix, which determines the number of rows in a band.
        of_band: function that takes the rows of a band and returns the sum over them, a tensor of any shape.
    """
    parts = [
        checkpoint(of_band, band, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else of_band(band)
        for band in bands(rows, columns) or [rows]
    ]
    return torch.stack(parts).sum(dim=0)


def bands(rows: slice, columns: int) -> list[slice]:
    """Split the rows of a matrix into bands: slices of consecutive rows with a limited number of elements."""
    height = max(1, _HELD // max(1, columns))
    return [slice(start, min(start + height, rows.stop)) for start in range(rows.start, rows.stop, height)]
