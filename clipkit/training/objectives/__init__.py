"""Training objectives, one per file; a row in `clipkit/recipe/terms.py` makes an objective available in recipes.

The file of a term has two functions: `objective` returns the objective that the step computes, `measure` the
measurement of an evaluation.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from clipkit.data import Pairs
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe, Term
from clipkit.training.measures.measurement import Measurement
from clipkit.training.objectives.objective import Objective, weighted_sum
from clipkit.training.objectives.teacher import Teacher

__all__ = ["ObjectiveFile", "file_of", "objective_of"]


class ObjectiveFile(Protocol):
    """Functions that each file of this folder defines."""

    def objective(
        self, term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]
    ) -> Objective:
        """Return the objective on these training pairs."""

    def measure(
        self, term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes
    ) -> Measurement:
        """Return the measurement of `term.metrics` on these validation pairs."""


def file_of(term: Term) -> ObjectiveFile:
    """Return the module in this folder that a term names."""
    return cast(ObjectiveFile, import_module(f"{__name__}.{term.name}"))


def objective_of(recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]) -> Objective:
    """Return the weighted sum of the recipe's terms.

    Args:
        recipe: names the terms.
        model: has the towers and heads.
        pairs: the training data.
        teachers: the teachers of the losses, by name.

    Raises:
        DataError: the data does not have a column that a term needs.
    """
    terms = recipe.terms
    objectives = [file_of(term).objective(term, recipe, model, pairs, teachers) for term in terms]
    return weighted_sum(objectives, [term.weight for term in terms])
