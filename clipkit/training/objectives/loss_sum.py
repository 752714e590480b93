"""The losses of a recipe, added up."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipkit import losses
from clipkit.recipe import LossRecipe, LossTerm
from clipkit.training.objectives.objective import Gathered, Scalars, Value


@dataclass(frozen=True)
class Loss:
    """A loss, and its value at equal similarities in a batch of G pairs where that does not depend on them."""

    function: Callable[..., Tensor]
    chance: Callable[[int], float | None] = lambda pairs: None


def loss_of(term: LossTerm) -> Loss:
    """The loss that a recipe names."""
    match term.name:
        case "infonce":
            return Loss(losses.infonce, math.log)
        case "sigmoid":
            return Loss(losses.sigmoid)
        case "ntxent":
            return Loss(losses.ntxent, lambda pairs: math.log(2 * pairs - 1))
        case "supcon":
            return Loss(losses.supcon, lambda pairs: math.log(2 * pairs - 1))
        case "dcl":
            return Loss(losses.dcl, lambda pairs: math.log(2 * pairs - 2))
        case "triplet":
            level = 0.2 if term.margin is None else term.margin
            return Loss(losses.triplet, lambda pairs: 0.0 if term.mining == "semihard" else level)
        case "contrastive":
            return Loss(losses.contrastive)
        case "negclip":
            return Loss(losses.negclip, lambda pairs: (math.log(2 * pairs) + math.log(pairs)) / 2)
        case "distillation":
            return Loss(losses.distillation, math.log)
        case "cross_consistency":
            return Loss(losses.cross_consistency, lambda pairs: 0.0)
        case "within_consistency":
            return Loss(losses.within_consistency, lambda pairs: 0.0)
        case name:
            raise NotImplementedError(f"{name} has a file in clipkit/losses, but no line here")


def loss_sum(recipe: LossRecipe, teachers: Mapping[str, Callable[[Gathered], Gathered]] | None = None) -> Value:
    """The sum of the losses that the recipe names.

    Args:
        recipe: names and weights.
        teachers: by name, from ids to a teacher's features and scale.
    """
    terms = [(term, loss_of(term).function) for term in recipe.terms]

    def value_of(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        total: Tensor | None = None
        for term, function in terms:
            given: dict[str, Any] = {**gathered, **scalars, **_options(term), "rows": rows}
            if term.teacher is not None:
                given |= (teachers or {})[term.teacher](gathered)
            # A loss takes what it names; whether that is there was seen to before the first step.
            wanted = inspect.signature(function).parameters
            value = term.weight * function(**{name: own for name, own in given.items() if name in wanted})
            total = value if total is None else total + value
        assert total is not None
        return total

    return value_of


def chance_of(recipe: LossRecipe, pairs: int) -> float | None:
    """The sum at equal similarities; None where it has no level of its own."""
    levels = [(term.weight, loss_of(term).chance(pairs)) for term in recipe.terms]
    if any(level is None for _, level in levels):
        return None
    return sum(weight * level for weight, level in levels if level is not None)


def needs(recipe: LossRecipe, what: str) -> bool:
    """Whether a loss takes this and cannot do without: bias, negative_text_features…"""
    return any(what in inspect.signature(loss_of(term).function).parameters for term in recipe.terms)


def _options(term: LossTerm) -> dict[str, Any]:
    options = term.model_dump(exclude={"name", "weight", "teacher"})
    return {name: value for name, value in options.items() if value is not None}
