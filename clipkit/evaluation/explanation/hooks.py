"""Hooks on the modules of an image tower, shared by the methods of relevance maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class NoValuesError(Exception):
    """Error for a tower whose modules do not give the values that a method needs."""


def outermost_members(trunk: nn.Module) -> set[nn.Module]:
    """Return the stages or blocks: members of `nn.ModuleList` and `nn.Sequential` that are inside no other member."""
    stacks = [module for module in trunk.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    members = {member for stack in stacks for member in stack}
    return members - {part for member in members for part in member.modules() if part is not member}


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Remove hooks at the end of a block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
