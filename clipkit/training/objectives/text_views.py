"""Objective text views: the positive of a view is another view of the same caption (SimCSE)."""

from collections.abc import Mapping

from clipkit.data import Pairs, TextView
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe, Term, TextViewsTerm
from clipkit.training.measures.text_views import TextViewValidation
from clipkit.training.objectives.objective import Encoded, Objective
from clipkit.training.objectives.teacher import Teacher
from clipkit.training.objectives.views import objective_of_views


def objective(
    term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]
) -> Objective:
    """Return the objective that compares views of a caption, one view per policy.

    The names of the features are text_view_1, text_view_2, ….

    Raises:
        DataError: the data does not have a column that a policy needs.
    """
    assert isinstance(term, TextViewsTerm)
    views, seed, head = term.views, recipe.train.seed, model.view_head("text")
    encoded = {
        f"text_view_{view}": Encoded("text", TextView(policy, pairs, views.crop, seed, view), of_trunk=head is not None)
        for view, policy in enumerate(views.policies, 1)
    }
    ids = ("caption_ids", "caption_ids" if views.positives == "caption" else "image_ids")
    return objective_of_views(encoded, views.loss, views.temperature, head, ids, recipe.train.batch_size)


def measure(term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes) -> TextViewValidation:
    """Return an object that validates the model by retrieval between different wordings of held-out captions."""
    assert isinstance(term, TextViewsTerm)
    crop = TextView("crop", pairs, term.views.crop, recipe.train.seed, 1)
    return TextViewValidation(crop, model, pairs, processes)
