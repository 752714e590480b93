"""Objectives: from gathered features, by name, to a scalar. The step knows nothing else about a loss."""

from collections.abc import Callable, Mapping

from torch import Tensor

from clipkit.losses import infonce
from clipkit.recipe import LossRecipe

Features = Mapping[str, Tensor]
"""`image` (G, D) and `text` (G, D), unit length."""
Objective = Callable[[Features, Tensor, slice], Tensor]
"""(features, scale, rows whose terms this process counts) -> its part of the loss."""


def objective_of(recipe: LossRecipe) -> Objective:
    """The objective that the recipe names."""
    match recipe.name:
        case "infonce":
            return _captions_infonce


def _captions_infonce(features: Features, scale: Tensor, rows: slice) -> Tensor:
    return infonce(features["image"], features["text"], scale, rows=rows)
