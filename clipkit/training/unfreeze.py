"""Gradual unfreezing: blocks that start to learn after a share of the run (Howard and Ruder 2018, ULMFiT, 3.3)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from clipkit.errors import RecipeError
from clipkit.models import DualEncoder, Tower
from clipkit.recipe.model import parse_tune
from clipkit.training.depth import block_numbers

Schedule = float | Mapping[str, float]


def first_steps(model: DualEncoder, unfreeze: Schedule | None, steps: int) -> dict[str, int]:
    """Return the first step in which each parameter is trained, counted from 0.

    Parameters that are trained from the first step on are left out.

    Args:
        unfreeze: `optim.unfreeze` of a recipe.
        steps: number of steps in the whole run.

    Raises:
        RecipeError: the recipe does not say when a trained block starts, or nothing is trained in the first step.
    """
    if unfreeze is None:
        return {}
    starts: dict[str, int] = {}
    for side, tower in model.sides.items():
        numbers = block_numbers(tower)
        trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad and name in numbers}
        shares = _shares(side, tower, sorted({numbers[name] for name in trained}), unfreeze)
        starts |= {f"{side}.{name}": math.ceil(shares[numbers[name]] * steps) for name in trained}
    waiting = {name for name, start in starts.items() if start > 0}
    if all(name in waiting or not parameter.requires_grad for name, parameter in model.named_parameters()):
        raise RecipeError(
            "optim.unfreeze: in the first step nothing would be trained, because the model has no trained "
            "projection; remove optim.unfreeze"
        )
    return {name: starts[name] for name in waiting}


def _shares(side: str, tower: Tower, trained: list[int], unfreeze: Schedule) -> dict[int, float]:
    """Return the share of the run after which each trained block starts to learn, by block number."""
    if not isinstance(unfreeze, Mapping):
        return {number: unfreeze * (len(trained) - index) / len(trained) for index, number in enumerate(trained)}
    first = {}
    for method, share in unfreeze.items():
        first[len(tower.blocks) - parse_tune(method)[1] + 1 if method != "full" else 1] = share
    shares = {number: [share for start, share in first.items() if number >= start] for number in trained}
    if late := [number for number in trained if not shares[number]]:
        raise RecipeError(
            f"optim.unfreeze does not say when the trained block {late[-1]} of {len(tower.blocks)} of the {side} "
            "tower starts to learn; add full: SHARE, or train fewer blocks with tune: last:N"
        )
    return {number: min(shares[number]) for number in trained}


@contextmanager
def frozen_until(starts: Mapping[str, int], model: nn.Module, step: int) -> Iterator[None]:
    """Return a context in which parameters whose first step comes after `step` are frozen.

    Args:
        starts: first step in which a parameter is trained, by name.
        step: number of the current step, from 0.
    """
    names = [name for name, start in starts.items() if start > step]
    waiting = [model.get_parameter(name) for name in names]
    for parameter in waiting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in waiting:
            parameter.requires_grad_(True)
