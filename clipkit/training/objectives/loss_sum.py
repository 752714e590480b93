"""Weighted sum of the losses of a recipe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from clipkit import losses
from clipkit.catalogue import LOSSES
from clipkit.recipe import LossTerm
from clipkit.training.objectives.objective import Gathered, Scalars, Value


def loss_sum(terms: Sequence[LossTerm], teachers: Mapping[str, Callable[[Gathered], Gathered]] | None = None) -> Value:
    """Return a function that computes the weighted sum of several losses.

    Args:
        terms: name, weight and options of each loss; at least one loss.
        teachers: teachers of the distillation losses, by name. A teacher is a function from the global batch to the
            teacher's features and scale.
    """
    calls = [_call(term, teachers or {}) for term in terms]

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        first, *others = [term.weight * call(gathered, scalars, rows) for term, call in zip(terms, calls, strict=True)]
        return sum(others, first)

    return value


def chance_of(terms: Sequence[LossTerm], pairs: int) -> float | None:
    """Return the weighted sum of the losses for a model that gives all pairs the same similarity.

    The result is None if the value of a loss is then not a fixed number. `pairs` is the size of a global batch.
    """
    total = 0.0
    for term in terms:
        chance = LOSSES[term.name].chance
        if chance is None:
            return None
        total += term.weight * chance(pairs, term.model_dump())
    return total


def _call(term: LossTerm, teachers: Mapping[str, Callable[[Gathered], Gathered]]) -> Value:
    """Return a function that computes one loss, without its weight, from the gathered features."""
    row = LOSSES[term.name]
    function: Callable[..., Tensor] = getattr(losses, row.name)
    teacher = teachers[term.teacher] if term.teacher is not None else None
    options = term.model_dump(include=set(row.options) - {"teacher"}, exclude_none=True)
    names = [name for need in row.needs for name in need.arguments]

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        given: dict[str, Any] = {**gathered, **scalars, **(teacher(gathered) if teacher is not None else {})}
        arguments = {name: given[name] for name in names}
        return function(gathered["image_features"], gathered["text_features"], **arguments, **options, rows=rows)

    return value
