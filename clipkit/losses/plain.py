"""Sums over a similarity matrix in plain PyTorch, for CPUs and for GPUs that `halves.py` does not support.

The functions have the same arguments and results as in `halves.py`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses.pair_ids import PairIds

# Rows and columns of a tile. They are fixed for each kind of device, because products of another shape may be rounded
# differently.
_CPU_TILE = (1024, 1024)
_ACCELERATOR_TILE = (4096, 8192)


def logsumexp(x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None, both: bool) -> tuple[Tensor, Tensor, None]:
    """Return log Σ_j exp(logit_ij) for each row i, log Σ_i exp(logit_ij) for each column j, and None.

    See `halves.logsumexp` for logit_ij and the arguments. None replaces the third result of `halves.logsumexp`.
    """
    lse_rows = x.new_full((len(x),), -torch.inf)
    lse_columns = x.new_full((len(y),), -torch.inf)
    for rows, columns, logits in _tiles(x, y, scale, ids):
        if both:
            row_part, column_part = _both_ways(logits)
            lse_columns[columns] = torch.logaddexp(lse_columns[columns], column_part)
        else:
            row_part = logits.logsumexp(dim=1)
        lse_rows[rows] = torch.logaddexp(lse_rows[rows], row_part)
    return lse_rows, lse_columns, None


def _both_ways(logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits.device.type == "cpu":
        # The exponentials, relative to the largest logit of the tile, are computed once for rows and columns, unless
        # all logits of a row or column are so small that its sum would be 0. An accelerator always computes them
        # twice, because the CPU would have to wait for this check.
        largest = logits.max()
        exponentials = torch.sub(logits, largest).exp_()
        row_sums, column_sums = exponentials.sum(dim=1), exponentials.sum(dim=0)
        if torch.minimum(row_sums.min(), column_sums.min()) > torch.tensor(-_widest(logits.dtype)).exp().item():
            return row_sums.log_().add_(largest), column_sums.log_().add_(largest)
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0)


def weigh_softmax(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    ids: PairIds | None,
    both: bool,
    kept: None,
    lse_rows: Tensor,
    lse_columns: Tensor,
    to_rows: Tensor,
    to_columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return Σ_j w_ij y_j for each row i and Σ_i w_ij x_i for each column j.

    See `halves.weigh_softmax` for the weights w_ij and the arguments. The argument `kept` is not used.
    """
    # log Σ exp is −∞ if all combinations are left out. Any finite number instead of it gives weights of exp(−∞) = 0.
    lse_rows, lse_columns = (lse.masked_fill(lse == -torch.inf, 0) for lse in (lse_rows, lse_columns))
    mixed_y, mixed_x = torch.zeros_like(x), torch.zeros_like(y)
    for rows, columns, logits in _tiles(x, y, scale, ids):
        if both:
            weights = _weights(logits, lse_rows[rows], lse_columns[columns], to_rows[rows], to_columns[columns])
        else:
            weights = logits.sub_(lse_rows[rows, None]).exp_().mul_(to_rows[rows, None])
        mixed_y[rows].addmm_(weights, y[columns])
        mixed_x[columns].addmm_(weights.T, x[rows])
    return mixed_y, mixed_x


def _weights(logits: Tensor, row_lse: Tensor, column_lse: Tensor, to_rows: Tensor, to_columns: Tensor) -> Tensor:
    """Return to_rows_i · softmax over row i + to_columns_j · softmax over column j. The logits are overwritten."""
    if logits.device.type == "cpu":
        top = torch.maximum(row_lse.max(), column_lse.max())
        bottom = torch.minimum(row_lse.min(), column_lse.min())
        if top - bottom < _widest(logits.dtype):
            row_factor = (top - row_lse).exp_().mul_(to_rows)
            column_factor = (top - column_lse).exp_().mul_(to_columns)
            return logits.sub_(top).exp_().mul_(row_factor[:, None] + column_factor[None, :])
    over_columns = (logits - column_lse[None, :]).exp_().mul_(to_columns[None, :])
    return logits.sub_(row_lse[:, None]).exp_().mul_(to_rows[:, None]).add_(over_columns)


def _widest(dtype: torch.dtype) -> float:
    """Return how far values of log Σ exp may be below a common offset before the exponentials lose accuracy."""
    return 600.0 if dtype == torch.float64 else 60.0


def softplus(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None) -> tuple[Tensor, None]:
    """Return Σ_ij log(1 + exp(logit_ij)) in float64, and None.

    logit_ij is scale · x_i · y_j + bias, or −∞ if `ids` leaves out the entry. None replaces the second result of
    `halves.softplus`.
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for _, _, logits in _tiles(x, y, scale, ids):
        total += F.softplus(logits.add_(bias)).sum(dim=1).sum(dtype=torch.float64)
    return total, None


def weigh_sigmoid(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None, kept: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_j w_ij y_j for each row i, Σ_i w_ij x_i for each column j, and Σ_ij w_ij in float64.

    The weight w_ij is sigmoid(logit_ij). The gradients of `softplus` follow from these sums.
    """
    mixed_y, mixed_x = torch.zeros_like(x), torch.zeros_like(y)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, columns, logits in _tiles(x, y, scale, ids):
        weights = logits.add_(bias).sigmoid_()
        total += weights.sum(dim=1).sum(dtype=torch.float64)
        mixed_y[rows].addmm_(weights, y[columns])
        mixed_x[columns].addmm_(weights.T, x[rows])
    return mixed_y, mixed_x, total


def _tiles(x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the rows, the columns and the logits of each tile. All tiles use the same memory for their logits."""
    height, width = _CPU_TILE if x.device.type == "cpu" else _ACCELERATOR_TILE
    scaled, y_t = x * scale, y.T  # scales the features once, instead of every tile
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
