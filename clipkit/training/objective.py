"""Objectives: from gathered features, by name, to a scalar. The step knows nothing else about a loss."""

from collections.abc import Callable, Mapping

from torch import Tensor

from clipkit.losses import infonce, sigmoid
from clipkit.recipe import LossRecipe

Gathered = Mapping[str, Tensor]
"""Of the global batch: features `image` and `text` (G, D), unit length; ids `image_ids` and `caption_ids` (G,)."""
Scalars = Mapping[str, Tensor]
"""`scale`, exp(logit_scale), and, where the model has one, `bias`."""
Objective = Callable[[Gathered, Scalars, slice], Tensor]
"""(gathered, scalars, rows whose terms this process counts) -> its part of the loss."""


def objective_of(recipe: LossRecipe) -> Objective:
    """The objective that the recipe names."""

    def captions_infonce(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        return infonce(
            gathered["image"],
            gathered["text"],
            scalars["scale"],
            image_ids=gathered["image_ids"],
            caption_ids=gathered["caption_ids"],
            duplicates=recipe.duplicates,
            rows=rows,
        )

    def captions_sigmoid(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        return sigmoid(
            gathered["image"],
            gathered["text"],
            scalars["scale"],
            scalars["bias"],
            image_ids=gathered["image_ids"],
            caption_ids=gathered["caption_ids"],
            duplicates=recipe.duplicates,
            rows=rows,
        )

    match recipe.name:
        case "infonce":
            return captions_infonce
        case "sigmoid":
            return captions_sigmoid
