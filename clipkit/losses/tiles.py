"""Reductions over a similarity matrix in tiles of fixed order, without ever storing the matrix.

Forward computes each tile once; backward computes it again, in the same order. Memory beyond the features and their
gradients is a few tiles, whatever the batch size. (The idea is FlashAttention's, Dao et al. 2022, used for contrastive
losses by Inf-CL, Cheng et al. 2024; this is plain PyTorch and does both directions of the loss in one pass.)
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.losses.pair_ids import PairIds

# Rows and columns of a tile. Fixed for each kind of device, because another shape rounds differently.
_CPU_TILE = (1024, 1024)
_ACCELERATOR_TILE = (4096, 8192)
# Up to this number of pairs plain operations are faster than tiles.
_SMALL = 128


def tiled_logsumexp(
    x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], scale: Tensor, ids: PairIds | None = None
) -> tuple[Float[Tensor, " R"], Float[Tensor, " C"]]:
    """Return log Σ_j exp(scale · x_i · y_j) for each row i, and log Σ_i of it for each column j, in one pass."""
    if max(len(x), len(y)) <= _SMALL and ids is None:
        with torch.autocast(x.device.type, enabled=False):
            logits = scale * x @ y.T
            return logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    rows, columns = _LogSumExp.apply(x, y, scale, ids, True)
    return rows, columns


def tiled_row_logsumexp(
    x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], scale: Tensor, ids: PairIds | None = None
) -> Float[Tensor, " R"]:
    """Return log Σ_j exp(scale · x_i · y_j) for each row i."""
    rows, _ = _LogSumExp.apply(x, y, scale, ids, False)
    return rows


def tiled_softplus_sum(
    x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], scale: Tensor, bias: Tensor, ids: PairIds | None = None
) -> Float[Tensor, ""]:
    """Return Σ_ij log(1 + exp(scale · x_i · y_j + bias))."""
    return _SoftplusSum.apply(x, y, scale, bias, ids)


def _tiles(x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the rows, the columns and the logits of each tile; all logits are written into the same memory."""
    height, width = _CPU_TILE if x.device.type == "cpu" else _ACCELERATOR_TILE
    scaled, y_t = x * scale, y.T  # scale the features once rather than every tile
    memory = x.new_empty(min(height, len(x)) * min(width, len(y)))
    for top in range(0, len(x), height):
        for left in range(0, len(y), width):
            rows, columns = slice(top, min(top + height, len(x))), slice(left, min(left + width, len(y)))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            logits = memory[: shape[0] * shape[1]].view(shape)
            torch.mm(scaled[rows], y_t[:, columns], out=logits)
            if ids is not None:
                logits.masked_fill_(ids.left_out(rows, columns), -torch.inf)
            yield rows, columns, logits


def _widest(dtype: torch.dtype) -> float:
    """Return the range of exponents in which exp(a - c) · exp(c - b) is as exact as exp(a - b)."""
    return 600.0 if dtype == torch.float64 else 60.0


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None, both: bool
    ) -> tuple[Tensor, Tensor]:
        lse_rows = x.new_full((len(x),), -torch.inf)
        lse_columns = x.new_full((len(y),), -torch.inf)
        least = torch.tensor(-_widest(x.dtype)).exp().item()
        with torch.autocast(x.device.type, enabled=False):
            for rows, columns, logits in _tiles(x, y, scale, ids):
                if not both:
                    lse_rows[rows] = torch.logaddexp(lse_rows[rows], logits.logsumexp(dim=1))
                    continue
                # One exponential serves both directions, unless a row or a column lies so far below the tile's
                # largest logit that its sum would vanish.
                largest = logits.max()
                exponentials = torch.sub(logits, largest).exp_()
                row_sums, column_sums = exponentials.sum(dim=1), exponentials.sum(dim=0)
                if torch.minimum(row_sums.min(), column_sums.min()) > least:
                    row_part, column_part = row_sums.log_().add_(largest), column_sums.log_().add_(largest)
                else:
                    row_part, column_part = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
                lse_rows[rows] = torch.logaddexp(lse_rows[rows], row_part)
                lse_columns[columns] = torch.logaddexp(lse_columns[columns], column_part)
        ctx.save_for_backward(x, y, scale, lse_rows, lse_columns)
        ctx.ids, ctx.both = ids, both
        return lse_rows, lse_columns

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, y, scale, lse_rows, lse_columns = ctx.saved_tensors
        to_rows, to_columns = gradients
        # If everything is left out the sum is empty: any finite number makes its weights exp(−∞) = 0.
        lse_rows, lse_columns = (lse.masked_fill(lse == -torch.inf, 0) for lse in (lse_rows, lse_columns))
        # Σ_j w_ij y_j and Σ_i w_ij x_i give the gradient of the scale too, without another pass: Σ_ij w_ij x_i · y_j.
        mixed_y, mixed_x = torch.zeros_like(x), torch.zeros_like(y)
        with torch.autocast(x.device.type, enabled=False):
            for rows, columns, logits in _tiles(x, y, scale, ctx.ids):
                row_lse, column_lse = lse_rows[rows], lse_columns[columns]
                if not ctx.both:
                    weights = logits.sub_(row_lse[:, None]).exp_().mul_(to_rows[rows, None])
                else:
                    weights = _weights(logits, row_lse, column_lse, to_rows[rows], to_columns[columns])
                mixed_y[rows].addmm_(weights, y[columns])
                mixed_x[columns].addmm_(weights.T, x[rows])
        to_scale = (x * mixed_y).sum().to(scale.dtype)
        return mixed_y * scale, mixed_x * scale, to_scale, None, None


def _weights(logits: Tensor, row_lse: Tensor, column_lse: Tensor, to_rows: Tensor, to_columns: Tensor) -> Tensor:
    """Return to_row_i · softmax over the row + to_column_j · softmax over the column, reusing the memory of logits."""
    top = torch.maximum(row_lse.max(), column_lse.max())
    bottom = torch.minimum(row_lse.min(), column_lse.min())
    if top - bottom < _widest(logits.dtype):
        row_factor = (top - row_lse).exp_().mul_(to_rows)
        column_factor = (top - column_lse).exp_().mul_(to_columns)
        return logits.sub_(top).exp_().mul_(row_factor[:, None] + column_factor[None, :])
    over_columns = (logits - column_lse[None, :]).exp_().mul_(to_columns[None, :])
    return logits.sub_(row_lse[:, None]).exp_().mul_(to_rows[:, None]).add_(over_columns)


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None) -> Tensor:
        # Sums of tiles in float64, because they differ much in size.
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for _, _, logits in _tiles(x, y, scale, ids):
                total += F.softplus(logits.add_(bias)).sum(dim=1).sum(dtype=torch.float64)
        ctx.save_for_backward(x, y, scale, bias)
        ctx.ids = ids
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, y, scale, bias = ctx.saved_tensors
        mixed_y, mixed_x = torch.zeros_like(x), torch.zeros_like(y)
        to_bias = torch.zeros((), dtype=torch.float64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for rows, columns, logits in _tiles(x, y, scale, ctx.ids):
                weights = logits.add_(bias).sigmoid_()
                to_bias += weights.sum(dim=1).sum(dtype=torch.float64)
                mixed_y[rows].addmm_(weights, y[columns])
                mixed_x[columns].addmm_(weights.T, x[rows])
        to_loss = gradients[0]
        to_scale = (x * mixed_y).sum() * to_loss
        factor = scale * to_loss
        return mixed_y * factor, mixed_x * factor, to_scale.to(scale.dtype), (to_bias * to_loss).to(bias.dtype), None
