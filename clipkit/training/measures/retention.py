"""Retention: how well a pretrained model keeps its earlier abilities, measured before and during training."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.data import Pairs
from clipkit.data.sequences import evenly_spaced
from clipkit.embedding.shared import evaluating
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.measures.named_set import NamedSet
from clipkit.training.rates import is_pretrained

_HELD_OUT = 128
"""Number of images and captions that are compared: 128 forward passes give 16,384 similarities."""


class Retention(Protocol):
    """Measure of retention: a single value of at most 1."""

    name: str
    """Name of the data."""
    metric: str
    """Key in evaluations.jsonl."""

    def value(self) -> float:
        """Return the retention of the model with its current weights."""


def retention_of(
    recipe: Recipe, model: DualEncoder, validation: Pairs | None, processes: Processes
) -> Retention | None:
    """Return the retention measure of a recipe.

    Retention is measured on the dataset `eval.retention` if it is given, otherwise by the similarities of the
    pretrained model on held-out pairs. The result is None if the model is not pretrained, or if there are no held-out
    pairs.

    Raises:
        DataError: the dataset cannot be read.
    """
    if recipe.eval.retention is not None:
        return NamedSet(model, recipe.eval.retention, processes)
    if validation is None or len(validation.images) < 2:
        return None
    if recipe.is_cross_modal and is_pretrained(recipe):
        return OwnSimilarities(model, validation)
    return None


class OwnSimilarities:
    """Retention on held-out pairs: correlation of the image-caption cosines now and before training; 1: unchanged.

    Most of these cosines compare images with captions of other images. Training on similar pairs mainly changes the
    cosines of matching pairs, a share of 1 / `min(N, 128)`, so it hardly changes the correlation.

    Args:
        model: the model before the first step.
        pairs: held-out pairs.
    """

    metric = "retention_similarity"

    def __init__(self, model: DualEncoder, pairs: Pairs) -> None:
        self.model = model
        positions = evenly_spaced(len(pairs.images), _HELD_OUT)
        self.images = [pairs.images[position] for position in positions]
        self.captions = [pairs.captions[int(pairs.captions_of_image[position][0])] for position in positions]
        self.name = f"the pretrained model's similarities on {len(positions)} held-out pairs"
        self.start = self._similarities()

    def value(self) -> float:
        both = torch.stack([self.start.flatten(), self._similarities().flatten()]).double()
        correlation = torch.corrcoef(both)[0, 1]
        return float(torch.nan_to_num(correlation))  # undefined where all features are equal

    def _similarities(self) -> Float[Tensor, "N M"]:
        with evaluating(self.model):
            return self.model.encode_image(self.images) @ self.model.encode_text(self.captions).T
