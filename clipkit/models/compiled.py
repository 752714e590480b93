"""Compilation of trunks with torch.compile, and code that runs them uncompiled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from clipkit.models.towers import TextTower, Tower


def compile_trunk(tower: Tower) -> None:
    """Compile the trunk of a tower in place; its parameters keep their names.

    All blocks of an encoder share the compiled code of one block: compiling a block takes seconds, the whole trunk
    minutes.
    """
    dynamic = True if isinstance(tower, TextTower) else None  # captions have many lengths, images one size
    for module in repeated_blocks(tower.trunk) or [tower.trunk]:
        module.compile(dynamic=dynamic)


def repeated_blocks(trunk: nn.Module) -> list[nn.Module]:
    """Return the modules of the largest `ModuleList` or `Sequential` whose modules all have the same class.

    The largest one is the one with the most weights. The result is empty if it has at most half of the weights of the
    trunk, or only one module.
    """
    stacks = [m for m in trunk.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len({*map(type, m)}) == 1]
    blocks = max(([*stack] for stack in stacks), key=_weights, default=[])
    return blocks if len(blocks) > 1 and _weights(blocks) > _weights([trunk]) / 2 else []


def _weights(modules: Sequence[nn.Module]) -> int:
    """Return the number of weights; embeddings are not counted."""
    several = [module for each in modules for module in each.modules() if not isinstance(module, nn.Embedding)]
    return sum(weight.numel() for module in several for weight in module.parameters(recurse=False))


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Context in which compiled modules run uncompiled, because otherwise each new input shape would be compiled."""
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        yield
