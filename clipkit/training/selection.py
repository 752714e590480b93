"""Selection and order of the training pairs by the model before its first step."""

from dataclasses import replace

from clipkit.data import HardGroups
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.hard_negatives import hard_groups
from clipkit.training.min_score import without_low_scores
from clipkit.training.run_data import RunData
from clipkit.training.start_features import start_features


def selected(
    recipe: Recipe, data: RunData, model: DualEncoder, processes: Processes
) -> tuple[RunData, HardGroups | None]:
    """Return the data without captions that `data.min_score` leaves out, and the groups of `data.hard_negatives`.

    All images and captions are encoded once, if the recipe has one of these keys.

    Raises:
        DataError: too few images are left for a batch.
        ModelError: a feature is not finite.
    """
    least, hard = recipe.data.min_score, recipe.data.hard_negatives
    if least is None and hard is None:
        return data, None
    features = start_features(model, data.train.pairs, data.missing, processes)
    data = replace(data, missing=features.bad)
    if least is not None:
        data, features = without_low_scores(recipe.data, recipe.train.batch_size, data, features, model.name)
    if hard is None:
        return data, None
    groups, note = hard_groups(hard, data.train.pairs, features, processes)
    return replace(data, notes=[*data.notes, note]), groups
