"""Compilation of trunks with torch.compile, and a context that runs them uncompiled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from clipkit.models.towers import TextTower, Tower


def compile_trunk(tower: Tower) -> None:
    """Compile the trunk of a tower in place. The names of parameters do not change.

    If repeated blocks hold most of the weights, each block is compiled instead of the whole trunk. This takes seconds
    instead of minutes, because the blocks share the compiled code.
    """
    dynamic = True if isinstance(tower, TextTower) else None  # captions have many lengths, images one size
    for module in repeated_blocks(tower.trunk) or [tower.trunk]:
        module.compile(dynamic=dynamic)


def repeated_blocks(trunk: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks that hold most of a trunk's weights, or an empty list.

    The blocks are the modules of the largest `ModuleList` or `Sequential` whose modules all have the same class. The
    list is empty if there is only one such module, or if they hold at most half of the weights.
    """
    stacks = [m for m in trunk.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len({*map(type, m)}) == 1]
    blocks = max(([*stack] for stack in stacks), key=_weights, default=[])
    return blocks if len(blocks) > 1 and _weights(blocks) > _weights([trunk]) / 2 else []


def _weights(modules: Sequence[nn.Module]) -> int:
    """Return the number of weights, not counting embeddings."""
    several = [module for each in modules for module in each.modules() if not isinstance(module, nn.Embedding)]
    return sum(weight.numel() for module in several for weight in module.parameters(recurse=False))


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Context in which compiled modules run uncompiled, to avoid a compilation for each input shape."""
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        yield
