"""Choice of the layers, the ridge and the width of a closed-form start, on a part of the training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics import recalls, retrieval_ranks
from clipkit.metrics.canonical_correlation import PairSums, canonical_correlation
from clipkit.models.layers import Layered, columns
from clipkit.recipe.layers import parse_layer

METRIC = "mean_recall"
_RIDGES = (1.0, 3.0)
"""Ridges in units of the mean variance of the scaled features, ascending; the first one is for the choice of layers."""
_WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class HeldOut:
    """Features of the held-out images and captions with which settings are compared, float32 on the CPU."""

    image: Float[Tensor, "N V"]
    text: Float[Tensor, "M W"]
    image_of_caption: Int[Tensor, " M"]


@dataclass(frozen=True)
class Choice:
    """Settings of a closed-form start, and retrieval with them on the held-out pairs."""

    image_layers: tuple[str, ...]
    text_layers: tuple[str, ...]
    ridge: float
    width: int
    """Number of coordinates that are used."""
    metrics: dict[str, float]

    @property
    def row(self) -> dict[str, Any]:
        """The choice with its metrics, for results.json."""
        settings = {"ridge": self.ridge, "width": self.width}
        layers = {"image_layers": list(self.image_layers), "text_layers": list(self.text_layers)}
        return {**layers, **settings, **self.metrics}


class Comparison:
    """Comparison of closed-form starts: initial projections that are computed from one part of the training pairs.

    Their retrieval is measured on the other part, which is held out.

    Args:
        sums: sums over the pairs of the first part, from which the projections are computed.
        held_out: the features of the held-out part.
        image, text: the trunks, with all layers that can be chosen.
        embed_dim: largest width of the start.
    """

    def __init__(self, sums: PairSums, held_out: HeldOut, image: Layered, text: Layered, embed_dim: int) -> None:
        self.sums = sums
        self.held_out = held_out
        self.image = image
        self.text = text
        self.embed_dim = embed_dim
        self.choices: list[Choice] = []

    def best(self, choose_image: bool, choose_text: bool) -> Choice:
        """Return the best choice: most layers, larger ridge, and a mean recall within a standard error of the highest.

        The layers of the image tower are chosen first, combined with all layers of the text tower. Then the layers of
        the text tower are chosen, and last the ridge. With fewer layers or a smaller ridge, results before training can
        be a little better, but the trained projections overfit (docs/benchmarks.md, two frozen towers).
        """
        image, text = self.image.layers, self.text.layers
        if choose_image:
            image = self._last_as_good([self.compare(each, text, _RIDGES[0]) for each in bundles(image)]).image_layers
        if choose_text:
            text = self._last_as_good([self.compare(image, each, _RIDGES[0]) for each in bundles(text)]).text_layers
        return self._last_as_good([self.compare(image, text, ridge) for ridge in _RIDGES])

    def compare(self, image_layers: Sequence[str], text_layers: Sequence[str], ridge: float) -> Choice:
        """Return the best choice of the width, for the given layers and ridge."""
        layers = (tuple(image_layers), tuple(text_layers), ridge)
        for choice in self.choices:
            if (choice.image_layers, choice.text_layers, choice.ridge) == layers:
                return choice
        image_columns, text_columns = self.columns(*layers[:2])
        sums = self.sums.of(image_columns, text_columns)
        blocks = self.widths(*layers[:2])
        fitted = canonical_correlation(
            sums, ridge, ridge, max(_WIDTHS), x_blocks=blocks[0], y_blocks=blocks[1], approximate=True
        )
        x = (self.held_out.image[:, image_columns].double() - fitted.x_mean) @ fitted.x_map
        y = (self.held_out.text[:, text_columns].double() - fitted.y_mean) @ fitted.y_map
        most = min(self.embed_dim, len(fitted.correlations))
        tried = []
        for width in sorted({min(width, most) for width in _WIDTHS}):
            weights = fitted.correlations[:width]
            image, text = (F.normalize(side[:, :width] * weights, dim=1).float() for side in (x, y))
            ranks = retrieval_ranks(image, text, self.held_out.image_of_caption)
            tried.append(Choice(*layers, width, recalls(ranks)))
        self.choices.append(self._first_best(tried))
        return self.choices[-1]

    def columns(self, image_layers: Sequence[str], text_layers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the column numbers of the given layers in the features of both towers."""
        image, text = self.image, self.text
        return columns(image.layers, image.widths, image_layers), columns(text.layers, text.widths, text_layers)

    def widths(self, image_layers: Sequence[str], text_layers: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the widths of these layers of both towers."""
        of_image, of_text = (dict(zip(trunk.layers, trunk.widths, strict=True)) for trunk in (self.image, self.text))
        return [of_image[name] for name in image_layers], [of_text[name] for name in text_layers]

    def _last_as_good(self, choices: Sequence[Choice]) -> Choice:
        # The largest standard error that a share of the images can have.
        tolerance = 0.5 / len(self.held_out.image) ** 0.5
        least = self._first_best(choices).metrics[METRIC] - tolerance
        return [choice for choice in choices if choice.metrics[METRIC] >= least][-1]

    def _first_best(self, choices: Sequence[Choice]) -> Choice:
        return max(choices, key=lambda choice: choice.metrics[METRIC])


def bundles(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Return nested groups of layers: the first is only the output, the last has all layers.

    Example:
        >>> bundles(["output", "max", "probabilities", "mean:4", "mean:3"])
        [('output',), ('output', 'mean:4', 'mean:3'), ('output', 'probabilities', 'mean:4', 'mean:3'), \
('output', 'max', 'probabilities', 'mean:4', 'mean:3')]
    """
    poolings = {name: parse_layer(name) for name in layers}
    earlier = {name for name, (pooling, number) in poolings.items() if number is not None or pooling == "mean"}
    groups = [{"output"}, earlier, {"probabilities"}, {"cls"}, {"max"}]
    taken: set[str] = set()
    found: list[tuple[str, ...]] = []
    for group in groups:
        taken |= group
        chosen = tuple(name for name in layers if name in taken)
        if chosen and (not found or chosen != found[-1]):
            found.append(chosen)
    return found
