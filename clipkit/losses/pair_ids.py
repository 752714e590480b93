"""Entries of a similarity matrix that a loss leaves out: duplicates, or a feature with itself."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class PairIds(NamedTuple):
    """Pairs in the rows and columns of a similarity matrix: their positions in the batch, and their IDs.

    They determine the entries that a loss leaves out: entries of two pairs with the same image or caption (if IDs are
    given), and entries of a pair with itself (if `without_self`).
    """

    row_position: Int[Tensor, " R"]
    column_position: Int[Tensor, " C"]
    row_ids: tuple[Int[Tensor, " R"], ...] = ()
    """Image IDs and caption IDs of the rows, if duplicates are left out; otherwise empty."""
    column_ids: tuple[Int[Tensor, " C"], ...] = ()
    without_self: bool = False
    """True: leave out the entry of a pair with itself."""

    def left_out(self, rows: slice, columns: slice) -> Tensor:
        """Return a mask of some rows and columns of the similarity matrix: True for entries that are left out."""
        itself = self.row_position[rows, None] == self.column_position[None, columns]
        if not self.row_ids:
            return itself if self.without_self else torch.zeros_like(itself)
        same = torch.zeros_like(itself)
        for row, column in zip(self.row_ids, self.column_ids, strict=True):
            same |= row[rows, None] == column[None, columns]
        return same | itself if self.without_self else same & ~itself
