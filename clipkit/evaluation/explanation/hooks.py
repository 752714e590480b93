"""Hooks on the modules of an image tower, shared by the methods of relevance maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class NoValuesError(Exception):
    """A method of relevance maps cannot read the activations that it needs from the image tower."""


def outermost_members(trunk: nn.Module) -> set[nn.Module]:
    """Return the outermost members of `nn.ModuleList` and `nn.Sequential`, e.g. the stages or blocks of a tower."""
    stacks = [module for module in trunk.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    members = {member for stack in stacks for member in stack}
    return members - {part for member in members for part in member.modules() if part is not member}


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Context manager that removes hooks on exit.

    Args:
        handles: handles that `register_forward_hook` or a similar method returned.
    """
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
