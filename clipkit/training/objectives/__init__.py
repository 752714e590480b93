"""The objectives that a recipe can name: one file each, and a line in `objective_of`."""

from collections.abc import Iterator, Mapping

from clipkit.data import Pairs
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe
from clipkit.training.objectives.captions import captions
from clipkit.training.objectives.objective import Objective, weighted_sum
from clipkit.training.objectives.teacher import Teacher
from clipkit.training.objectives.views import image_views, text_views

__all__ = ["objective_of"]


def objective_of(recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]) -> Objective:
    """The objective of a recipe: one, or several with their weights.

    Args:
        recipe: what is learned.
        model: whose towers and heads are used.
        pairs: the training data.
        teachers: of the losses that have one.

    Raises:
        DataError: the data lacks what it needs.
    """

    def parts() -> Iterator[Objective]:
        for name in sorted(recipe.objective):  # whatever order they were written in
            match name:
                case "captions":
                    yield captions(recipe, model, pairs, teachers)
                case "views":
                    if recipe.image_views is not None:
                        yield image_views(recipe.image_views, recipe.train.seed, model, pairs, recipe.train.batch_size)
                    if recipe.text_views is not None:
                        yield text_views(recipe.text_views, recipe.train.seed, model, pairs, recipe.train.batch_size)
                case other:
                    raise NotImplementedError(f"{other} has a file in clipkit/training/objectives, but no line here")

    return weighted_sum(list(parts()), recipe.objective)
