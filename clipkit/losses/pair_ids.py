"""Combinations of rows and columns that a loss leaves out."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class PairIds(NamedTuple):
    """Positions and IDs of rows and columns, which determine the combinations to leave out: duplicates, or self-pairs.

    Duplicates share an image or a caption; positions distinguish a pair from its duplicates.
    """

    row_position: Int[Tensor, " R"]
    column_position: Int[Tensor, " C"]
    row_ids: tuple[Int[Tensor, " R"], ...] = ()
    """Image and caption of each row, if duplicates are left out."""
    column_ids: tuple[Int[Tensor, " C"], ...] = ()
    without_self: bool = False
    """Leave out the combination of a pair with itself."""

    def left_out(self, rows: slice, columns: slice) -> Tensor:
        """Return a mask of a tile: True for combinations of row and column that are left out."""
        itself = self.row_position[rows, None] == self.column_position[None, columns]
        if not self.row_ids:
            return itself if self.without_self else torch.zeros_like(itself)
        same = torch.zeros_like(itself)
        for row, column in zip(self.row_ids, self.column_ids, strict=True):
            same |= row[rows, None] == column[None, columns]
        return same | itself if self.without_self else same & ~itself
