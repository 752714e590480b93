"""Objective image views: the positive of a view is another view of the same image (SimCLR)."""

from collections.abc import Mapping

from clipkit.data import Pairs, Policy, TextSafe
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import ImageViewsTerm, Recipe, Term, steps_of
from clipkit.training.measures.image_views import ImageViewValidation
from clipkit.training.objectives.objective import Encoded, Objective
from clipkit.training.objectives.teacher import Teacher
from clipkit.training.objectives.views import objective_of_views


def objective(
    term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]
) -> Objective:
    """Return the objective that compares augmented views of an image, one view per policy.

    The names of the features are image_view_1, image_view_2, ….
    """
    assert isinstance(term, ImageViewsTerm)
    encoded, head = _encoded(term, recipe, model, pairs), model.view_head("image")
    ids = ("image_ids", "image_ids" if term.views.positives == "image" else "caption_ids")
    return objective_of_views(encoded, term.views.loss, term.views.temperature, head, ids, recipe.train.batch_size)


def measure(term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes) -> ImageViewValidation:
    """Return an object that validates the model by retrieval between two views of held-out images."""
    assert isinstance(term, ImageViewsTerm)
    return ImageViewValidation(_encoded(term, recipe, model, pairs), recipe.data.workers, model, pairs, processes)


def _encoded(term: ImageViewsTerm, recipe: Recipe, model: DualEncoder, pairs: Pairs) -> dict[str, Encoded]:
    preprocess, seed = model.image.preprocess, recipe.train.seed
    safe = TextSafe(pairs) if term.safe else None
    encoded = {}
    for view, policy in enumerate(term.views.policies, 1):
        make = Policy(steps_of(policy), preprocess.image_size, preprocess.of_crop, preprocess, seed, view, safe)
        encoded[f"image_view_{view}"] = Encoded("image", make, of_trunk="image" in term.heads)
    return encoded
