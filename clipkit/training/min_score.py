"""Selection of training captions for `data.min_score`, by similarity to their images before training."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from clipkit.data import IndexedFeed, Pairs
from clipkit.errors import DataError, ModelError
from clipkit.findings import counted
from clipkit.recipe import DataRecipe
from clipkit.training.run_data import RunData
from clipkit.training.start_features import StartFeatures

_SHOWN = 3


def without_low_scores(
    recipe: DataRecipe, batch_size: int, data: RunData, features: StartFeatures, model: str
) -> tuple[RunData, StartFeatures]:
    """Remove the training captions with a low score, and the images that lose all their captions.

    The score of a caption is the cosine similarity of the caption and its image. Captions of missing and unreadable
    images are kept; `data.max_bad` limits these images.

    Args:
        recipe: section `data` of the recipe. `min_score` is the lowest allowed score, or the share of captions to
            remove.
        batch_size: pairs in a global batch.
        model: name of the model, for messages.

    Returns:
        The remaining data, with a note about what was removed, and the features of the remaining data.

    Raises:
        DataError: too few images are left for a batch.
        ModelError: a score is not finite.
    """
    pairs = data.train.pairs
    scores = scores_of(features, pairs, model)
    dropped = low_scores(scores, recipe.least_score, recipe.lowest_share)
    rows = np.flatnonzero(~dropped)
    left = np.unique(pairs.image_of_caption[rows])
    median = f"the median score is {np.nanmedian(scores):.3f}"
    if len(left) < batch_size:
        raise DataError(
            f"{pairs.name}: data.min_score {recipe.min_score} leaves {counted(len(left), 'image')}, fewer than "
            f"train.batch_size {batch_size} ({median}); use a lower data.min_score, such as 10%"
        )
    position = {int(old): new for new, old in enumerate(left)}
    bad = {position[image]: reason for image, reason in features.bad.items() if image in position}
    kept = StartFeatures(features.image[left], features.text[rows], bad)
    note = f"{_left_out(pairs, scores, dropped, len(pairs.images) - len(left))}; {median}"
    data = replace(data, train=IndexedFeed(pairs.take_captions(rows)), missing=bad, notes=[*data.notes, note])
    return data, kept


def scores_of(features: StartFeatures, pairs: Pairs, model: str) -> Float[np.ndarray, " M"]:
    """Return the cosine similarity of each caption and its image.

    The value is NaN if the image is missing or unreadable.

    Raises:
        ModelError: the score of a readable image is not finite.
    """
    scores = torch.linalg.vecdot(features.image[pairs.image_of_caption], features.text).numpy()
    of_bad = np.isin(pairs.image_of_caption, list(features.bad))
    if not np.isfinite(scores[~of_bad]).all():
        raise ModelError(f"{model}: the features are not finite, so data.min_score cannot use them; use another model")
    return np.where(of_bad, np.float32(np.nan), scores)


def low_scores(scores: Float[np.ndarray, " M"], least: float | None, share: float | None) -> NDArray[np.bool_]:
    """Return a mask of the low scores; NaN is never low.

    Args:
        least: scores below this value are low. None: use `share`.
        share: share of the scores that are low, e.g. 0.1 for the lowest tenth. The number of low scores is rounded
            down. Ties go to the earlier positions.

    Example:
        >>> low_scores(np.array([0.3, 0.1, np.nan, 0.2], np.float32), 0.15, None).tolist()
        [False, True, False, False]
        >>> low_scores(np.array([0.3, 0.1, np.nan, 0.2], np.float32), None, 0.5).tolist()
        [False, True, False, True]
    """
    if least is not None:
        return scores < np.float32(least)
    low = np.zeros(len(scores), bool)
    count = min(int((share or 0.0) * len(scores) + 1e-9), int((~np.isnan(scores)).sum()))
    low[np.argsort(scores, kind="stable")[:count]] = True  # NaN is sorted to the end
    return low


def _left_out(pairs: Pairs, scores: NDArray[np.float32], dropped: NDArray[np.bool_], images: int) -> str:
    """Return a log line about the removed captions and images, with the lowest scores."""
    rows = np.argsort(scores, kind="stable")[: dropped.sum()].tolist()
    if not rows:
        return f"data.min_score removes no caption of {pairs.name}: the lowest score is {np.nanmin(scores):.3f}"
    lowest = ", ".join(
        f"{scores[row]:.3f} ({pairs.images[pairs.image_of_caption[row]]}: {pairs.captions[row][:60]!r})"
        for row in rows[:_SHOWN]
    )
    return (
        f"data.min_score removes {len(rows):,} of {counted(len(scores), 'caption')} and {images:,} of "
        f"{counted(len(pairs.images), 'image')}; the removed captions have a similarity of {scores[rows[-1]]:.3f} or "
        f"less to their images before training: {lowest}{', …' * (len(rows) > _SHOWN)}"
    )
