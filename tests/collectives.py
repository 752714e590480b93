"""Record of the collective operations of a process."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def recorded(calls: list[str]) -> None:
    """Add each collective operation of this process to `calls`, with the shape of its tensor."""
    for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
        real = getattr(dist, name)

        def call(
            tensor: Tensor, *others: Any, name: str = name, real: Callable[..., Any] = real, **options: Any
        ) -> Any:
            calls.append(f"{name} {tuple(tensor.shape)}")
            return real(tensor, *others, **options)

        setattr(dist, name, call)
