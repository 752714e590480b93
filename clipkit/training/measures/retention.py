"""What is left of what a pretrained model knew, measured at the start and at each evaluation."""

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.data import LabeledImages, Pairs, read_labeled, read_pairs
from clipkit.errors import DataError
from clipkit.evaluation import retrieval, zeroshot
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.guards.before import is_pretrained
from clipkit.training.inputs import evaluating

_HELD_OUT = 128
"""Images and captions whose similarities are compared: 16,384 of them, for the price of 128 forwards."""


class Retention(Protocol):
    """One figure, 1 at best."""

    name: str
    """Of the set."""
    metric: str
    """As it stands in evaluations.jsonl."""

    def value(self) -> float:
        """Of the model as it is."""


def retention_of(
    recipe: Recipe, model: DualEncoder, validation: Pairs | None, processes: Processes
) -> Retention | None:
    """What a recipe retains: a set that it names, else the pretrained model's own similarities; None: nothing to lose.

    Raises:
        DataError: the set cannot be read.
    """
    if recipe.eval.retention is not None:
        return NamedSet(model, recipe.eval.retention, processes)
    captions = "captions" in recipe.objective
    if captions and is_pretrained(recipe) and validation is not None and len(validation.images) > 1:
        return OwnSimilarities(model, validation)
    return None


class NamedSet:
    """Zero-shot accuracy where the set has classes, mean recall where it has captions.

    Args:
        model: as it is trained.
        source: class folders, a table with a label column, or captions.
        processes: each encodes its share.

    Raises:
        DataError: it is neither.
    """

    def __init__(self, model: DualEncoder, source: str, processes: Processes) -> None:
        self.model = model
        self.name = source
        self.processes = processes
        self.data: LabeledImages | Pairs
        try:
            self.data = read_labeled(source)
            self.metric = "retention_acc1"
        except DataError:
            self.data = read_pairs(source)
            self.metric = "retention_mean_recall"

    def value(self) -> float:
        with evaluating(self.model):
            result: Any
            if isinstance(self.data, LabeledImages):
                result = zeroshot(self.model, self.data, cache=False, processes=self.processes)
            else:
                result = retrieval(self.model, self.data, cache=False, processes=self.processes)
        metrics = result["metrics"]
        found = metrics.get(self.metric.removeprefix("retention_")) or metrics["mean_average_precision"]
        return float(found["value"])


class OwnSimilarities:
    """Correlation of the cosines between held-out images and captions with those at the start: 1 is unchanged.

    Whether images and captions still lie to each other as they did, also those that do not belong together. Gaining
    on the pairs themselves moves one cosine in `min(N, 128)`, and hardly shows.

    Args:
        model: as it is before the first step.
        pairs: held out.
    """

    metric = "retention_similarity"

    def __init__(self, model: DualEncoder, pairs: Pairs) -> None:
        self.model = model
        count = len(pairs.images)
        places = np.unique(np.linspace(0, count - 1, min(count, _HELD_OUT)).round().astype(int))
        self.images = [pairs.images[place] for place in places]
        self.captions = [pairs.captions[int(pairs.captions_of_image[place][0])] for place in places]
        self.name = f"the pretrained model's similarities on {len(places)} held-out pairs"
        self.start = self._similarities()

    def value(self) -> float:
        both = torch.stack([self.start.flatten(), self._similarities().flatten()]).double()
        correlation = torch.corrcoef(both)[0, 1]
        return float(torch.nan_to_num(correlation))  # of features that are all the same nothing is left

    def _similarities(self) -> Float[Tensor, "N M"]:
        with evaluating(self.model):
            return self.model.encode_image(self.images) @ self.model.encode_text(self.captions).T
