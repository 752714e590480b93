"""Interface between objectives and the training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clipkit.data import Augment, TextOf

Gathered = Mapping[str, Tensor]
"""The global batch: features by name, e.g. `image_features` and `text_features` (G, D); ids `image_ids` and
`caption_ids` (G,), equal for captions of equal meaning, and `caption_rows` (G,), positions of the captions."""
Scalars = Mapping[str, Tensor]
"""`scale`, exp(logit_scale), and `bias` if the model has one."""
Value = Callable[[Gathered, Scalars, slice], Tensor]
"""Function from (gathered, scalars, rows that this process sums) to this process's part of the loss."""


@dataclass(frozen=True)
class Encoded:
    """One kind of features that an objective needs: the tower that computes them, and the inputs of this tower."""

    tower: Literal["image", "text"]
    make: Augment | TextOf
    """Function that makes the tower's input: from an image (image tower), or from a sample to a string (text tower)."""
    of_trunk: bool = False
    """Use the trunk's output (G, W), for a head in the objective, instead of the tower's features of unit length."""


@dataclass(frozen=True)
class Objective:
    """A training objective: the features that it needs, and its value.

    Each process and micro-batch computes the value for a slice of the rows of the batch. The sum over all slices must
    be the value for the whole batch.

    Example:
        >>> def twice(default: Objective) -> Objective:
        ...     return replace(default, value=lambda *arguments: 2 * default.value(*arguments))
        >>> clipkit.train("recipe.yaml", objective=twice)    # doctest: +SKIP
    """

    encoded: Mapping[str, Encoded]
    """Features that the objective needs, by name."""
    value: Value
    chance: float | None
    """Value when all similarities are equal; None if it is not a fixed number."""
    compared: Callable[[Gathered], tuple[Tensor, Tensor]]
    """Two kinds of unit-length features (G, D), whose accuracy and cosines are logged."""
    sides: tuple[str, str]
    """Names of the two compared kinds of features in the log."""


def weighted_sum(objectives: Sequence[Objective], weights: Sequence[float]) -> Objective:
    """Return the weighted sum of several objectives.

    Accuracy and cosines are logged only for the first objective.
    """

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
