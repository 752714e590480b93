"""Functions that divide work on a dataset among processes and return the complete result to each process."""

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
    """Encode items on several processes; return the features of all items to every process.

    Each process encodes a contiguous part. The features are in the order of the items, on `processes.device`.

    Args:
        items: the same N items on every process; fewer items than processes are allowed.
        encode: function that returns one feature row per item; not called on a process without items.
        processes: processes that encode.

    Raises:
        UserError: `encode` raised a UserError on any process; all processes then raise it.
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
    """Apply a function to items on several processes; return all results, by position of the item, to every process.

    Args:
        items: the same items on every process; each process scans a contiguous part of them.
        scan: function from a part of the items to a dict: position in this part -> result. The dict may omit items.
        processes: processes that scan.

    Raises:
        UserError: `scan` raised a UserError on any process; all processes then raise it.
    """
    share = processes.share(len(items))
    results: dict[int, V] = {}
    with processes.failing_together():
        results = {share.start + position: value for position, value in scan(items[share]).items()}
    return {position: value for part in processes.gather_objects(results) for position, value in part.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: within the block, the model is in evaluation mode and without torch.compile."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with uncompiled(model):
            yield
    finally:
        for module in learning:
            module.training = True
