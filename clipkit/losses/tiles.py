"""Sums over a similarity matrix that is never stored as a whole. It is computed one tile at a time, in a fixed order.

The forward pass computes each tile once, and the backward pass computes each tile again. Besides the features and their
gradients, only a few tiles are in memory. The idea is from FlashAttention (Dao et al. 2022), and Inf-CL (Cheng et al.
2024) applies it to contrastive losses.

`plain.py` computes tiles with PyTorch, and `halves.py` computes tiles with Triton kernels.
"""

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.losses import plain
from clipkit.losses.pair_ids import PairIds

# Compute capabilities of data center GPUs. On other GPUs, float16 products are less than three times as fast as float32
# products, and the kernels compute three float16 products instead of one float32 product.
_CAPABILITIES = {(8, 0), (9, 0), (10, 0), (10, 3)}
# Up to this number of pairs, the complete matrix is faster than tiles.
_SMALL = 128


def tiled_logsumexp(
    x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], scale: Tensor, ids: PairIds | None = None
) -> tuple[Float[Tensor, " R"], Float[Tensor, " C"]]:
    """Return log Σ_j exp(scale · x_i · y_j) for each row i, and log Σ_i exp(scale · x_i · y_j) for each column j.

    Args:
        x: features of the rows.
        y: features of the columns.
        scale: factor of the similarities.
        ids: entries (i, j) to leave out of the sums; None: no entries.
    """
    if max(len(x), len(y)) <= _SMALL and ids is None:
        with torch.autocast(x.device.type, enabled=False):
            logits = scale * x @ y.T
            return logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    rows, columns = _LogSumExp.apply(x, y, scale, ids, True)
    return rows, columns


def tiled_row_logsumexp(
    x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], scale: Tensor, ids: PairIds | None = None
) -> Float[Tensor, " R"]:
    """Return log Σ_j exp(scale · x_i · y_j) for each row i. See `tiled_logsumexp` for the arguments."""
    rows, _ = _LogSumExp.apply(x, y, scale, ids, False)
    return rows


def tiled_softplus_sum(
    x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], scale: Tensor, bias: Tensor, ids: PairIds | None = None
) -> Float[Tensor, ""]:
    """Return Σ_ij log(1 + exp(scale · x_i · y_j + bias)). See `tiled_logsumexp` for the other arguments."""
    return _SoftplusSum.apply(x, y, scale, bias, ids)


def _tiles_of(x: Tensor) -> ModuleType:
    """Return the module that computes tiles for these features: `halves` (Triton) or `plain` (PyTorch)."""
    return _kernels(x.device) if x.dtype == torch.float32 else plain


@functools.cache
def _kernels(device: torch.device) -> ModuleType:
    """Return the module that computes tiles of float32 features on a device: `halves` or `plain`.

    Data center GPUs use `halves`. If the Triton kernels fail, a warning shows the reason, and `plain` is used.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) not in _CAPABILITIES:
        return plain
    try:
        from clipkit.losses import halves

        halves.check(device)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        warnings.warn(
            f"the Triton kernels of the losses failed, so slower PyTorch operations are used; check Triton ({reason})",
            stacklevel=2,
        )
        return plain
    return halves


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None, both: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            lse_rows, lse_columns, ctx.kept = _tiles_of(x).logsumexp(x, y, scale, ids, both)
        ctx.save_for_backward(x, y, scale, lse_rows, lse_columns)
        ctx.ids, ctx.both = ids, both
        return lse_rows, lse_columns

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, y, scale, *lse = ctx.saved_tensors
        # The gradient of the scale, Σ_ij w_ij x_i · y_j, follows from the same weighted sums.
        with torch.autocast(x.device.type, enabled=False):
            mixed_y, mixed_x = _tiles_of(x).weigh_softmax(x, y, scale, ctx.ids, ctx.both, ctx.kept, *lse, *gradients)
        to_scale = (x * mixed_y).sum().to(scale.dtype)
        return mixed_y.mul_(scale), mixed_x.mul_(scale), to_scale, None, None


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            total, ctx.kept = _tiles_of(x).softplus(x, y, scale, bias, ids)
        ctx.save_for_backward(x, y, scale, bias)
        ctx.ids = ids
        value: Tensor = total.to(x.dtype)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, y, scale, bias = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            mixed_y, mixed_x, to_bias = _tiles_of(x).weigh_sigmoid(x, y, scale, bias, ctx.ids, ctx.kept)
        to_loss = gradients[0]
        to_scale = (x * mixed_y).sum() * to_loss
        factor = scale * to_loss
        return (
            mixed_y.mul_(factor),
            mixed_x.mul_(factor),
            to_scale.to(scale.dtype),
            (to_bias * to_loss).to(bias.dtype),
            None,
        )
