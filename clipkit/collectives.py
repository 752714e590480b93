"""Collective operations: the context that each runs in, and a gather of rows with gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from clipkit.errors import lost_process

_lent: list[Tensor] = []


@contextmanager
def together(*tensors: Tensor) -> Iterator[None]:
    """Context for a collective operation on tensors: if another process has ended, raise a one-line error.

    Tensors on the CPU are kept until gloo's threads have dropped them. Otherwise such a thread may be the last owner,
    and enter Python to free the tensor. A loader worker forked at this moment waits forever before Python 3.11.10
    (https://github.com/python/cpython/issues/112275).
    """
    _lent[:] = [tensor for tensor in _lent if tensor._use_count() > 1]
    _lent.extend(tensor for tensor in tensors if tensor.device.type == "cpu")
    try:
        yield
    except RuntimeError as error:
        # If a loader worker dies, PyTorch raises an error in the main thread, in whatever code is running.
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        raise lost_process(error) from None


def _padded(rows: Float[Tensor, "B D"], height: int) -> Float[Tensor, "H D"]:
    """Return the rows, padded with rows of zeros to `height` rows."""
    return (
        rows.contiguous()
        if len(rows) == height
        else torch.cat([rows, rows.new_zeros(height - len(rows), rows.shape[1])])
    )


class GatherRows(torch.autograd.Function):
    """Differentiable all_gather for different numbers of rows.

    The backward pass sums the gradients of all processes and keeps the rows of this process (reduce_scatter).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: list[slice], index: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.shares, ctx.index, ctx.group = shares, index, group
        height = max(share.stop - share.start for share in shares)
        gathered = rows.new_empty(len(shares) * height, rows.shape[1])
        padded = _padded(rows, height)
        with together(gathered, padded):
            dist.all_gather_into_tensor(gathered, padded, group=group)
        if len(gathered) == shares[-1].stop:  # no process padded its rows
            return gathered
        parts = zip(gathered.split(height), shares, strict=True)
        return torch.cat([part[: share.stop - share.start] for part, share in parts])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, shares = gradients[0].contiguous(), ctx.shares
        height = max(share.stop - share.start for share in shares)
        if len(gradient) < len(shares) * height:
            gradient = torch.cat([_padded(gradient[share], height) for share in shares])
        summed = gradient.new_empty(height, gradient.shape[1])
        with together(summed, gradient):
            dist.reduce_scatter_tensor(summed, gradient, group=ctx.group)
        own = shares[ctx.index]
        return summed[: own.stop - own.start], None, None, None
