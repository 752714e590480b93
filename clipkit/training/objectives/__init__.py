"""Training objectives.

The file of each objective has two functions. `objective` returns the objective that the training step computes, and
`measure` returns an object that evaluates the model on the validation pairs. A row in `clipkit/recipe/terms.py` makes
an objective available in recipes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, cast

from clipkit.data import Pairs
from clipkit.errors import RecipeError
from clipkit.images import kind_of
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe, Term
from clipkit.training.measures.measurement import Measurement
from clipkit.training.objectives.objective import Objective, weighted_sum
from clipkit.training.objectives.python_loss import value_of_loss
from clipkit.training.objectives.teacher import Teacher

__all__ = ["ObjectiveFile", "file_of", "objective_of"]


class ObjectiveFile(Protocol):
    """Functions that the file of each objective defines."""

    def objective(
        self, term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]
    ) -> Objective:
        """Return the objective for the training pairs."""

    def measure(
        self, term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes
    ) -> Measurement:
        """Return an object that computes the metrics `term.metrics` on the validation pairs."""


def file_of(term: Term) -> ObjectiveFile:
    """Return the module that defines the objective of a term, e.g. objectives/captions.py."""
    return cast(ObjectiveFile, import_module(f"{__name__}.{term.name}"))


def objective_of(
    recipe: Recipe,
    model: DualEncoder,
    pairs: Pairs,
    teachers: Mapping[str, Teacher],
    loss: Callable[..., Any] | None = None,
    given: Objective | Callable[[Objective], Objective] | None = None,
) -> Objective:
    """Return the objective of a run: the weighted sum of the recipe's loss terms, or an objective given in Python.

    Args:
        recipe: recipe of the run.
        model: model that is trained.
        pairs: training data.
        teachers: teachers of the distillation losses, by name.
        loss: function of image and text features that replaces the losses of the recipe.
        given: objective to use instead, or a function from the recipe's objective to another objective.

    Raises:
        DataError: the data does not have a column that a term needs.
    """
    terms = recipe.terms
    objectives = [file_of(term).objective(term, recipe, model, pairs, teachers) for term in terms]
    whole = weighted_sum(objectives, [term.weight for term in terms])
    if loss is not None:
        return replace(whole, value=value_of_loss(loss), chance=None)
    if given is None or isinstance(given, Objective):
        return given or whole
    made = given(whole)
    if not isinstance(made, Objective):
        raise RecipeError(f"the function given as objective returned {kind_of(made)}; return an Objective")
    return made
