"""All-reduce of gradients in buckets, overlapped with the backward pass."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from clipkit.processes import Processes

# Values per bucket: large enough for the bandwidth of a network, small enough to start early.
_BUCKET = 1 << 23


class GradientSum:
    """Sums the gradients of one step over all processes (all-reduce), in buckets of consecutive parameters.

    The sum of a bucket starts as soon as the gradients of this bucket and of all earlier buckets are complete. All
    processes have the same buckets in the same order. Therefore, they start the same sums, even if one of them runs out
    of memory and stops its backward pass.

    Args:
        groups: groups of parameters in the order in which their gradients are completed, e.g. one group for each tower.
        processes: the processes whose gradients are summed.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], processes: Processes) -> None:
        self._processes = processes
        self._groups = [[parameter for parameter in group if parameter.requires_grad] for group in groups]
        self._buckets = _buckets([parameter for group in self._groups for parameter in group], _BUCKET)
        self._incomplete = {parameter: index for index, part in enumerate(self._buckets) for parameter in part}
        """Parameters whose gradient is not complete, with the index of their bucket."""
        self._left = [len(part) for part in self._buckets]
        self._sums: list[tuple[torch.Tensor, Callable[[], None]]] = []
        self._present: list[bool] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def completes(self, group: int) -> None:
        """Declare that the next backward pass is the last one that adds to the gradients of a parameter group.

        Each of these gradients is complete as soon as this pass has computed it.
        """
        self._hooks += [
            parameter.register_post_accumulate_grad_hook(self._complete) for parameter in self._groups[group]
        ]

    def complete(self, group: int) -> None:
        """Declare that all gradients of a parameter group are complete.

        A parameter that has no gradient on this process adds zeros to the sum.
        """
        for parameter in self._groups[group]:
            self._complete(parameter)

    def flush(self) -> list[bool]:
        """Start the sums that have not started yet.

        Returns:
            For each parameter, True if it has a gradient on this process.
        """
        for hook in self._hooks:
            hook.remove()
        for group in range(len(self._groups)):
            self.complete(group)
        return self._present

    def wait(self) -> None:
        """Wait for the sums that have started and discard their results, because the step has failed."""
        for _, wait in self._sums:
            wait()
        self._sums = []

    def finish(self, present: Sequence[bool]) -> None:
        """Wait for all sums, and store them as the gradients of the parameters.

        Args:
            present: for each parameter, True if at least one process has a gradient. The other parameters get no
                gradient, so the optimizer does not change them.
        """
        used = iter(present)
        for part, (flat, wait) in zip(self._buckets, self._sums, strict=True):
            wait()
            for parameter, summed in zip(part, flat.split([p.numel() for p in part]), strict=True):
                assert parameter.grad is None, "a gradient arrived after its bucket had started"
                parameter.grad = summed.view_as(parameter) if next(used) else None

    def _complete(self, parameter: nn.Parameter) -> None:
        bucket = self._incomplete.pop(parameter, None)
        if bucket is None:
            return
        self._left[bucket] -= 1
        while len(self._sums) < len(self._buckets) and not self._left[len(self._sums)]:
            part = self._buckets[len(self._sums)]
            self._present += [p.grad is not None for p in part]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in part])
            for p in part:
                p.grad = None  # the bucket now holds the gradient
            self._sums.append((flat, self._processes.start_sum(flat)))


def _buckets(parameters: list[nn.Parameter], values: int) -> list[list[nn.Parameter]]:
    """Divide parameters into buckets: consecutive, of one data type, and with at most about `values` elements."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size + parameter.numel() > values or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
