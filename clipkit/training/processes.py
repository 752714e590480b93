"""What the processes of a run do together: share rows, gather features with their gradient, sum gradients."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn


class Processes:
    """The processes of a run, one or many. Everything here is exact for shares of unequal size."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.count = accelerator.num_processes
        self.index = accelerator.process_index
        self.device = accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this one writes the files."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """This process's contiguous rows of `total`."""
        return self._share_of(self.index, total)

    def _share_of(self, index: int, total: int) -> slice:
        return slice(index * total // self.count, (index + 1) * total // self.count)

    def gather(self, rows: Float[Tensor, "B D"], total: int) -> Float[Tensor, "G D"]:
        """All processes' rows in order. The gradient of a row is summed over the processes that used it."""
        if self.count == 1:
            return rows
        sizes = [self._share_of(index, total) for index in range(self.count)]
        return _GatherRows.apply(rows, sizes, self.index)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        total = value.detach().clone()
        if self.count > 1:
            dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes: towers, scale and bias in one reduction.

        A parameter without a gradient here may have one elsewhere, so it takes part as zeros.
        """
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in learning if parameter.grad is not None])
        dist.all_reduce(flat)
        for parameter, summed in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
            parameter.grad = summed.view_as(parameter)

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()


class _GatherRows(torch.autograd.Function):
    """all_gather of unequal row counts; backward sums every process's gradient and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: list[slice], index: int) -> Tensor:
        ctx.own = shares[index]
        height = max(share.stop - share.start for share in shares)
        padded = rows.new_zeros(height, rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None, None
