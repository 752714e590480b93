"""Entries of a similarity matrix that a loss leaves out, e.g. duplicates."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class PairIds(NamedTuple):
    """Positions and IDs of pairs, which determine the entries that a loss leaves out of a similarity matrix.

    If IDs are given, entries of two different pairs with the same image or caption are left out. If `without_self` is
    True, entries of a pair with itself are left out.
    """

    row_position: Int[Tensor, " R"]
    column_position: Int[Tensor, " C"]
    row_ids: tuple[Int[Tensor, " R"], ...] = ()
    """Image IDs and caption IDs of the rows, if duplicates are left out; otherwise empty."""
    column_ids: tuple[Int[Tensor, " C"], ...] = ()
    without_self: bool = False
    """True: leave out the entry of a pair with itself."""

    def left_out(self, rows: slice, columns: slice) -> Tensor:
        """Return a mask of some rows and columns of the matrix: True for entries that the loss leaves out."""
        itself = self.row_position[rows, None] == self.column_position[None, columns]
        if not self.row_ids:
            return itself if self.without_self else torch.zeros_like(itself)
        same = torch.zeros_like(itself)
        for row, column in zip(self.row_ids, self.column_ids, strict=True):
            same |= row[rows, None] == column[None, columns]
        return same | itself if self.without_self else same & ~itself
