"""Objectives: what they see, and what they make of it. The step knows nothing else about what is learned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clipkit.data import Augment, TextOf

Gathered = Mapping[str, Tensor]
"""Of the global batch: features by name, as `image_features` and `text_features` (G, D); ids `image_ids` and
`caption_ids` (G,)."""
Scalars = Mapping[str, Tensor]
"""`scale`, exp(logit_scale), and, where the model has one, `bias`."""
Value = Callable[[Gathered, Scalars, slice], Tensor]
"""(gathered, scalars, rows whose terms this process counts) -> its part of the loss."""


@dataclass(frozen=True)
class Encoded:
    """A kind of features that an objective sees."""

    tower: Literal["image", "text"]
    make: Augment | TextOf
    """For the image tower from an image to its input, for the text tower from a sample to a string."""
    of_trunk: bool = False
    """The trunk's output as it is, (G, W), for a head in the objective; else the tower's features of unit length."""


@dataclass(frozen=True)
class Objective:
    """One thing that is learned.

    Over slices of rows that cover the batch its values sum to the whole: that is all that processes and micro-batches
    ask of it.
    """

    name: str
    encoded: Mapping[str, Encoded]
    value: Value
    chance: float | None
    """Its value at equal similarities; None where it has no level of its own."""
    compared: Callable[[Gathered], tuple[Tensor, Tensor]]
    """The two kinds of features (G, D), of unit length, that are to find each other."""
    sides: tuple[str, str]
    """What they are called."""


def weighted_sum(objectives: Sequence[Objective], weights: Mapping[str, float]) -> Objective:
    """Several objectives as one; what is compared is the first one's."""

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        first, *others = [weights[own.name] * own.value(gathered, scalars, rows) for own in objectives]
        return sum(others, first)

    levels = [own.chance for own in objectives]
    return Objective(
        " + ".join(own.name for own in objectives),
        {name: encoded for own in objectives for name, encoded in own.encoded.items()},
        value,
        None if None in levels else sum(weights[own.name] * own.chance for own in objectives if own.chance is not None),
        objectives[0].compared,
        objectives[0].sides,
    )
