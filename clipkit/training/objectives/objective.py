"""Objectives: which features they are computed from, and how. The step knows nothing else about what is learned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clipkit.data import Augment, TextOf

Gathered = Mapping[str, Tensor]
"""The global batch: features by name, e.g. `image_features` and `text_features` (G, D); ids `image_ids` and
`caption_ids` (G,)."""
Scalars = Mapping[str, Tensor]
"""`scale`, exp(logit_scale), and `bias` if the model has one."""
Value = Callable[[Gathered, Scalars, slice], Tensor]
"""(gathered, scalars, rows whose terms this process counts) -> its part of the loss."""


@dataclass(frozen=True)
class Encoded:
    """Features that an objective is computed from."""

    tower: Literal["image", "text"]
    make: Augment | TextOf
    """For the image tower from an image to its input, for the text tower from a sample to a string."""
    of_trunk: bool = False
    """Use the trunk's output (G, W), for a head in the objective, instead of the tower's features of unit length."""


@dataclass(frozen=True)
class Objective:
    """One objective, ready to be computed.

    Over slices of rows that cover the batch its values must sum to the whole: processes and micro-batches need nothing
    else.
    """

    encoded: Mapping[str, Encoded]
    """Features by name."""
    value: Value
    chance: float | None
    """Its value at equal similarities; None if that depends on the similarities."""
    compared: Callable[[Gathered], tuple[Tensor, Tensor]]
    """The two kinds of features (G, D), of unit length, whose accuracies and cosines are logged."""
    sides: tuple[str, str]
    """Names of these two in the log."""


def weighted_sum(objectives: Sequence[Objective], weights: Sequence[float]) -> Objective:
    """Return several objectives as one; the log compares the features of the first."""

    weighted = list(zip(weights, objectives, strict=True))

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        first, *others = [weight * one.value(gathered, scalars, rows) for weight, one in weighted]
        return sum(others, first)

    levels = [None if one.chance is None else weight * one.chance for weight, one in weighted]
    return Objective(
        {name: encoded for objective in objectives for name, encoded in objective.encoded.items()},
        value,
        None if None in levels else sum(level for level in levels if level is not None),
        objectives[0].compared,
        objectives[0].sides,
    )
