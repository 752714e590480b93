"""Collective operations: a context that reports lost processes, and a differentiable gather of rows."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from clipkit.errors import lost_process

_lent: list[Tensor] = []
"""Tensors on the CPU that a collective operation, and threads of gloo, may still use."""
_MOST_SECONDS = 1.0
"""Longest time that a fork waits for the threads of gloo."""


@contextmanager
def together(*tensors: Tensor) -> Iterator[Sequence[Tensor]]:
    """Context that raises a one-line error if another process ends during a collective operation.

    The operation must use the tensors that the context returns, which share memory with the given tensors.

    Raises:
        TrainingError: another process has ended or does not respond.
    """
    # On a CPU, `_lent` keeps a reference to each returned tensor until the threads of gloo no longer use the tensor. A
    # fork waits for these threads. Otherwise, a thread of gloo could free a tensor, which runs Python code. Before
    # Python 3.11.10, a loader worker that is forked at that moment waits forever
    # (https://github.com/python/cpython/issues/112275).
    _forget_dropped()
    given = [tensor.detach() if tensor.device.type == "cpu" else tensor for tensor in tensors]
    _lent.extend(tensor for tensor in given if tensor.device.type == "cpu")
    try:
        yield given
    except RuntimeError as error:
        # If a loader worker dies, PyTorch raises an error in the main thread, in whatever code is running.
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        raise lost_process(error) from None


def _references(values: Sequence[object]) -> list[int]:
    return [sys.getrefcount(value) for value in values]


_UNSHARED = _references([object()])[0]


def _forget_dropped() -> None:
    """Remove the tensors that gloo no longer uses from the list `_lent`, which keeps tensors alive for gloo."""
    # A tensor that gloo uses has an additional reference.
    counts = _references(_lent)
    _lent[:] = [
        tensor
        for tensor, count in zip(_lent, counts, strict=True)
        if count > _UNSHARED or tensor._use_count() > 1  # type: ignore[attr-defined, unused-ignore] # before torch 2.15
    ]


def _wait_for_threads() -> None:
    end = time.monotonic() + _MOST_SECONDS
    _forget_dropped()
    while _lent and time.monotonic() < end:
        time.sleep(0.0005)
        _forget_dropped()


os.register_at_fork(before=_wait_for_threads)


def _padded(rows: Float[Tensor, "B D"], height: int) -> Float[Tensor, "H D"]:
    """Append rows of zeros up to `height` rows."""
    return (
        rows.contiguous()
        if len(rows) == height
        else torch.cat([rows, rows.new_zeros(height - len(rows), rows.shape[1])])
    )


class GatherRows(torch.autograd.Function):
    """Differentiable all_gather of rows. The number of rows may differ between processes.

    The backward pass sums the gradients over all processes, and returns those of this process's rows (reduce_scatter).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: list[slice], index: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.shares, ctx.index, ctx.group = shares, index, group
        height = max(share.stop - share.start for share in shares)
        gathered = rows.new_empty(len(shares) * height, rows.shape[1])
        padded = _padded(rows, height)
        with together(gathered, padded) as (into, own):
            dist.all_gather_into_tensor(into, own, group=group)
        if len(gathered) == shares[-1].stop:  # all processes have the same number of rows, so none was padded
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
        with together(summed, gradient) as (into, given):
            dist.reduce_scatter_tensor(into, given, group=ctx.group)
        own = shares[ctx.index]
        return summed[: own.stop - own.start], None, None, None
