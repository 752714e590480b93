"""Choice of layers, ridge and width for initial projections by CCA, on held-out training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics import recalls, retrieval_ranks
from clipkit.metrics.canonical_correlation import PairSums, Whitening, correlation_of_whitened, whitening
from clipkit.models.layers import Layered, columns
from clipkit.recipe.layers import parse_layer

METRIC = "mean_recall"
_RIDGES = (1.0, 3.0)
"""Ridges in units of the mean variance of the scaled features, ascending; the first one is for the choice of layers."""
_WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class HeldOut:
    """Features of the held-out pairs on which CCA settings are compared; float32 on the CPU."""

    image: Float[Tensor, "N V"]
    text: Float[Tensor, "M W"]
    image_of_caption: Int[Tensor, " M"]


@dataclass(frozen=True)
class Choice:
    """Settings of initial projections by CCA, and their retrieval metrics on the held-out pairs."""

    image_layers: tuple[str, ...]
    text_layers: tuple[str, ...]
    ridge: float
    width: int
    """Number of coordinates that are used."""
    metrics: dict[str, float]

    @property
    def row(self) -> dict[str, Any]:
        """The settings and their metrics, for results.json."""
        settings = {"ridge": self.ridge, "width": self.width}
        layers = {"image_layers": list(self.image_layers), "text_layers": list(self.text_layers)}
        return {**layers, **settings, **self.metrics}


class Comparison:
    """Compares settings for initial projections by CCA.

    The projections of each setting are computed from one part of the training pairs and evaluated on the held-out
    pairs.

    Args:
        sums: sums over the pairs from which the projections are computed.
        held_out: features of the held-out pairs.
        image, text: the trunks, with all layers that can be chosen.
        embed_dim: largest number of canonical coordinates.
    """

    def __init__(self, sums: PairSums, held_out: HeldOut, image: Layered, text: Layered, embed_dim: int) -> None:
        covariances = sums.covariances(torch.float32)
        self.held_out = held_out
        self.image = _Side(image, covariances.x_mean, covariances.xx, covariances.xy)
        self.text = _Side(text, covariances.y_mean, covariances.yy, covariances.xy.T)
        self.embed_dim = embed_dim
        self.choices: list[Choice] = []

    def best(self, choose_image: bool, choose_text: bool) -> Choice:
        """Choose the image layers, then the text layers, then the ridge, by mean recall on the held-out pairs.

        Settings whose mean recall is within a standard error of the best one are considered equally good. Of these, the
        setting with the most layers or the largest ridge is chosen. With fewer layers or a smaller ridge, retrieval
        before training can be slightly better, but the trained projections overfit (docs/benchmarks.md, two frozen
        towers).

        Args:
            choose_image, choose_text: True to choose the layers of this tower, False to use all of them.
        """
        image, text = self.image.trunk.layers, self.text.trunk.layers
        if choose_image:
            tried = [self.compare(each, text, _RIDGES[0], "text") for each in bundles(image)]
            image = self._last_as_good(tried).image_layers
        if choose_text:
            text = self._last_as_good([self.compare(image, each, _RIDGES[0]) for each in bundles(text)]).text_layers
        return self._last_as_good([self.compare(image, text, ridge) for ridge in _RIDGES])

    def compare(
        self,
        image_layers: Sequence[str],
        text_layers: Sequence[str],
        ridge: float,
        fixed: Literal["image", "text"] = "image",
    ) -> Choice:
        """Find the best width for the given layers and ridge, and return these settings.

        Args:
            fixed: tower whose layers stay the same in the next call, which then needs only half of the work.
        """
        layers = (tuple(image_layers), tuple(text_layers), ridge)
        for choice in self.choices:
            if (choice.image_layers, choice.text_layers, choice.ridge) == layers:
                return choice
        image_columns, text_columns = self.columns(*layers[:2])
        if fixed == "text":
            of_text, half = self.text.half_whitened(layers[1], ridge)
            of_image = self.image.whitening(layers[0], ridge)
            whitened = of_image.apply(half[:, image_columns].T)
        else:
            of_image, half = self.image.half_whitened(layers[0], ridge)
            of_text = self.text.whitening(layers[1], ridge)
            whitened = of_text.apply(half[:, text_columns].T).T
        fitted = correlation_of_whitened(of_image, of_text, whitened, max(_WIDTHS), approximate=True)
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
        """Return the feature columns of the given layers, for both towers."""
        return self.image.columns(image_layers), self.text.columns(text_layers)

    def widths(self, image_layers: Sequence[str], text_layers: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the widths of the given layers, for both towers."""
        return self.image.widths(image_layers), self.text.widths(text_layers)

    def _last_as_good(self, choices: Sequence[Choice]) -> Choice:
        # The largest standard error that a share of the images can have.
        tolerance = 0.5 / len(self.held_out.image) ** 0.5
        least = self._first_best(choices).metrics[METRIC] - tolerance
        return [choice for choice in choices if choice.metrics[METRIC] >= least][-1]

    def _first_best(self, choices: Sequence[Choice]) -> Choice:
        return max(choices, key=lambda choice: choice.metrics[METRIC])


class _Side:
    """Mean and covariances of the features of one tower; the features of all its layers are concatenated.

    Args:
        mean, covariance: mean and covariance of the V features.
        cross: covariance of the V features with the W features of the other tower.
    """

    def __init__(
        self,
        trunk: Layered,
        mean: Float[Tensor, " V"],
        covariance: Float[Tensor, "V V"],
        cross: Float[Tensor, "V W"],
    ) -> None:
        self.trunk = trunk
        self.mean = mean
        self.covariance = covariance
        self.cross = cross
        self._last: tuple[Any, tuple[Whitening, Tensor]] | None = None

    def columns(self, layers: Sequence[str]) -> Int[Tensor, " v"]:
        """Return the feature columns of the given layers."""
        return columns(self.trunk.layers, self.trunk.widths, layers)

    def widths(self, layers: Sequence[str]) -> list[int]:
        """Return the widths of the given layers."""
        widths = dict(zip(self.trunk.layers, self.trunk.widths, strict=True))
        return [widths[name] for name in layers]

    def whitening(self, layers: Sequence[str], ridge: float) -> Whitening:
        """Return the whitening transform of the given layers."""
        chosen = self.columns(layers)
        return whitening(self.mean[chosen], self.covariance[chosen][:, chosen], ridge, self.widths(layers))

    def half_whitened(self, layers: Sequence[str], ridge: float) -> tuple[Whitening, Float[Tensor, "v W"]]:
        """Return the whitening transform of the given layers, and their whitened cross-covariance.

        The cross-covariance is that with all layers of the other tower. The last result is cached.
        """
        if self._last is None or self._last[0] != (layers, ridge):
            made = self.whitening(layers, ridge)
            self._last = (layers, ridge), (made, made.apply(self.cross[self.columns(layers)]))
        return self._last[1]


def bundles(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Return nested groups of layers, from the output alone to all layers.

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
