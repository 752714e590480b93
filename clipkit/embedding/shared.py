"""Functions that split work on a dataset across processes and give every process the complete result."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.models.compiled import uncompiled
from clipkit.processes import Processes

T = TypeVar("T")
V = TypeVar("V")


def encode_shared(
    items: Sequence[T], encode: Callable[[Sequence[T]], Float[Tensor, "K D"]], processes: Processes
) -> Float[Tensor, "N D"]:
    """Return the features of all items, in order, on `processes.device`: each process encodes a contiguous share.

    Args:
        items: the same N items on every process; fewer items than processes are allowed.
        encode: returns one row per given item; it is not called for an empty share.
        processes: the group that shares the work.

    Raises:
        UserError: `encode` raised a UserError on one process; all processes raise it.
    """
    share = items[processes.share(len(items))]
    rows = torch.empty(0, 0)
    with processes.failing_together():
        if len(share):
            rows = encode(share)
    width = processes.largest(rows.shape[1])
    if not len(share):
        rows = torch.empty(0, width)
    return processes.gather(rows.to(processes.device), len(items))


def scan_shared(
    items: Sequence[T], scan: Callable[[Sequence[T]], Mapping[int, V]], processes: Processes
) -> dict[int, V]:
    """Scan a contiguous share of the items on each process; return all results (position among all items -> result).

    Args:
        items: the same items on every process.
        scan: function from a share of the items to results (position in the share -> result); it may omit positions.
        processes: the group that shares the work.

    Raises:
        UserError: `scan` raised a UserError on one process; all processes raise it.
    """
    share = processes.share(len(items))
    results: dict[int, V] = {}
    with processes.failing_together():
        results = {share.start + position: value for position, value in scan(items[share]).items()}
    return {position: value for part in processes.gather_objects(results) for position, value in part.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode and not compiled; afterwards each module's mode is restored."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with uncompiled(model):
            yield
    finally:
        for module in learning:
            module.training = True
