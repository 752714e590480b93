"""Compilation of trunks with torch.compile, and code that runs them uncompiled."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from clipkit.models.towers import TextTower, Tower


def compile_trunk(tower: Tower) -> None:
    """Compile the trunk of a tower in place, so that its parameters keep their names."""
    # Captions have many lengths, images one size.
    tower.trunk.compile(dynamic=True if isinstance(tower, TextTower) else None)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled modules uncompiled inside the block, for shapes each of which would be compiled."""
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        yield
