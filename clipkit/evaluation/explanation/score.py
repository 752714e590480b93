"""Scores of relevance maps: deletion, insertion, and rank correlation with occlusion, on one grid of cells.

Deletion and insertion follow Petsiuk et al. 2018 ("RISE: Randomized input sampling for explanation"). Both measure the
cosine of image and text. Hidden cells get the mean color of the image.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.evaluation.explanation.occlusion import CELLS, cosines, square_windows
from clipkit.evaluation.explanation.seen import Seen
from clipkit.models import DualEncoder

_STEPS = 10
_RANDOM = 3  # number of random maps for each image
_WINDOW = 3  # rows and columns of the windows of `occlusion`


@dataclass(frozen=True)
class Areas:
    """Deletion and insertion scores of one relevance map: mean cosines while the image is gradually hidden or shown."""

    deletion: float
    """Mean cosine while cells are hidden, the most relevant cells first; lower is better."""
    insertion: float
    """Mean cosine while cells are shown, the most relevant cells first; higher is better."""


@dataclass(frozen=True)
class Scores:
    """Scores of a relevance map and, for comparison, of random maps and of a map of the image center."""

    map: Areas
    random: Areas
    """Mean over several random maps."""
    center: Areas
    """Values of a map that decreases with the distance from the center of the image."""
    occlusion: float | None
    """Spearman's rank correlation between two values of each window of 3 × 3 cells. The values are the sum of the map
    over the window, and the drop of the cosine when the window is hidden. Random maps have a mean correlation of 0.
    None: one of the two values is equal for all windows."""
    center_occlusion: float | None
    """Rank correlation of the center map with the drops of the cosine, for comparison."""

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain values."""
        return asdict(self)


def scored(model: DualEncoder, seen: Seen, text: Float[Tensor, " D"], map: Float[Tensor, "R C"]) -> Scores:
    """Measure how well a relevance map shows which parts of an image determine its cosine with a text.

    Args:
        model: the model.
        seen: the preprocessed image.
        text: unit-length features of the text.
        map: relevance of parts of the image.
    """
    cells = on_grid(map)
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(CELLS, CELLS, generator=generator) for _ in range(_RANDOM)]
    of_random = [_areas(model, seen, text, one) for one in random]
    drops = occlusion(model, seen, text)
    return Scores(
        _areas(model, seen, text, cells),
        Areas(*(float(np.mean([getattr(one, name) for one in of_random])) for name in ("deletion", "insertion"))),
        _areas(model, seen, text, center()),
        rank_correlation(windowed(cells), drops),
        rank_correlation(windowed(center()), drops),
    )


def on_grid(map: Float[Tensor, "R C"]) -> Float[Tensor, "K K"]:
    """Average a relevance map over each cell of the K × K grid on which maps are scored."""
    return F.adaptive_avg_pool2d(map[None].float(), CELLS)[0]


def center() -> Float[Tensor, "K K"]:
    """Return a map whose relevance decreases with the distance from the center of the image."""
    steps = torch.arange(CELLS) - (CELLS - 1) / 2
    return -(steps[:, None] ** 2 + steps**2)


def windowed(cells: Float[Tensor, "K K"]) -> Float[Tensor, "W W"]:
    """Return the sum of a relevance map over each window of 3 × 3 cells; W is K − 2."""
    # Windows across the border are left out. They have fewer cells, so their sums are smaller, and so are the drops of
    # the cosine when they are hidden. Every map would agree with these drops, even a constant map.
    return _WINDOW**2 * F.avg_pool2d(cells[None, None], _WINDOW, stride=1)[0, 0]


def curves(
    model: DualEncoder, seen: Seen, text: Float[Tensor, " D"], cells: Float[Tensor, "K K"]
) -> tuple[list[float], list[float]]:
    """Return two curves of the cosine, while more and more cells are hidden and shown.

    The most relevant cells come first. Each curve has eleven points, from no cell to all cells.

    Args:
        seen: the preprocessed image.
        text: unit-length features of the text.
        cells: relevance of each grid cell.
    """
    order = cells.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    counts = torch.linspace(0, len(order), _STEPS + 1).round()
    first = (rank < counts[:, None]).view(-1, *cells.shape)
    values = cosines(model, seen, text[None], torch.cat([~first, first]))[:, 0].tolist()
    return values[: _STEPS + 1], values[_STEPS + 1 :]


def occlusion(model: DualEncoder, seen: Seen, text: Float[Tensor, " D"]) -> Float[Tensor, "W W"]:
    """Return how much the cosine drops when a window of 3 × 3 cells is hidden, for each window."""
    windows = square_windows(_WINDOW)
    values = cosines(model, seen, text[None], torch.cat([torch.ones_like(windows[:1]), ~windows]))[:, 0]
    side = CELLS - _WINDOW + 1
    return (values[0] - values[1:]).view(side, side)


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's rank correlation of two tensors, or None if one of them is constant.

    Tied values share their mean rank.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0]))
        1.0
    """
    ranks = [_ranks(values.flatten().double().numpy()) for values in (first, second)]
    if any(np.ptp(one) == 0 for one in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1].round(6))


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _areas(model: DualEncoder, seen: Seen, text: Tensor, cells: Tensor) -> Areas:
    return Areas(*(float(np.trapezoid(curve, dx=1 / _STEPS)) for curve in curves(model, seen, text, cells)))
