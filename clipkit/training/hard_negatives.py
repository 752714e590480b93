"""Hard negatives for `data.hard_negatives`: images that the model can hardly tell apart before training."""

import numpy as np
import torch

from clipkit.data import HardGroups, Pairs, hard_neighbors
from clipkit.findings import counted
from clipkit.processes import Processes
from clipkit.recipe import HardNegativesRecipe
from clipkit.training.start_features import StartFeatures

# Number of hard negatives of an image, as a multiple of the group size: late in an epoch, the hardest are in other
# groups already.
_SPARE = 8


def hard_groups(
    recipe: HardNegativesRecipe, pairs: Pairs, features: StartFeatures, processes: Processes
) -> tuple[HardGroups, str]:
    """Find the hard negatives of the training images, from features of the model before training.

    Missing and unreadable images get no hard negatives, and are not hard negatives of other images. The result is the
    same on all processes.

    Args:
        recipe: section `data.hard_negatives` of the recipe.
        processes: the processes of the run; only the main process searches.

    Returns:
        The hard negatives, and a log line about their number.
    """
    count = min(_SPARE * recipe.group, len(pairs.images) - 1)
    found = torch.full((len(pairs.images), count), -1)
    if processes.is_main:
        neighbors = hard_neighbors(features.image, features.text, pairs.image_of_caption, count, recipe.margin)
        bad = np.array(sorted(features.bad), np.int64)
        neighbors[np.isin(neighbors, bad)] = -1
        neighbors[bad] = -1
        found = torch.from_numpy(neighbors)
    neighbors = processes.rows_of_main(found).numpy()
    with_any = int((neighbors >= 0).any(axis=1).sum())
    note = (
        f"data.hard_negatives: {with_any:,} of {counted(len(pairs.images), 'image')} have hard negatives with "
        f"a margin of {recipe.margin:g}; batches consist of groups of up to {recipe.group} images"
    )
    return HardGroups(neighbors, recipe.group), note
