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
    """Measure of retention, with a single value of at most 1."""

    name: str
    """Name of the data."""
    metric: str
    """Key in evaluations.jsonl."""

    def value(self) -> float:
        """Return the retention of the model with its current weights."""


def retention_of(
    recipe: Recipe, model: DualEncoder, validation: Pairs | None, processes: Processes
) -> Retention | None:
    """Return the measure of how well earlier abilities are kept, or None if this cannot be measured.

    The measure uses the dataset `eval.retention` if it is set. Otherwise, the measure uses the similarities of held-out
    pairs, which requires a pretrained model and at least two held-out images.

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
    """Retention on held-out pairs: correlation between the image-caption cosines before training and now.

    A value of 1 means that training has not changed the similarities. The cosines are between up to 128 images and the
    first captions of these images. Most of the cosines belong to non-matching pairs, so training on similar pairs
    hardly lowers the correlation.

    Args:
        model: model before the first step.
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
