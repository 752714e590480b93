"""Selection and order of the training pairs, from features of the model before training."""

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
    """Apply `data.min_score` and `data.hard_negatives` to the training data.

    If the recipe has one of these keys, the model encodes all images and captions once.

    Returns:
        The data without the captions that `data.min_score` removes, and the hard negatives. The hard negatives are None
        if the recipe does not set `data.hard_negatives`.

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
