"""Near duplicates, outliers, and captions that do not fit their image, found by the features of an index.

A caption is doubtful if it fits its image worse than captions usually do, or resembles the image's other captions less.
Captions are sorted by fit + agreement, both in units of spread (see `DoubtfulCaption`). The agreement of a single
caption is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from clipkit.search.nearest import as_float32
from clipkit.search.source import CAPTIONS

if TYPE_CHECKING:
    from clipkit.search.index import Index

_BLOCK = 1024
_NEIGHBORS = 10
_IMAGES = 256  # images whose captions are compared together
_SAMPLE = 1024  # captions that others are compared with


@dataclass(frozen=True)
class DoubtfulCaption:
    """A caption that fits its image worse than most captions fit their images."""

    row: int
    caption: str
    score: float
    """Cosine similarity of the caption and its image."""
    fit: float
    """(score - m) / d with the median m and the lower spread d of the caption's scores over a sample of the images:
    about 0 for the caption of another image."""
    agreement: float | None
    """(mean cosine similarity with the image's other captions - m) / d with the median m and the lower spread d of the
    caption's similarities with a sample of all captions; None for the only caption of an image."""
    better_row: int
    """The image that the caption fits best."""
    better_score: float


@dataclass(frozen=True)
class Neighbors:
    """The most similar images of each image, the most similar first; the image itself is among them."""

    scores: NDArray[np.float32]
    """(N, K) cosine similarities."""
    rows: NDArray[np.int64]
    """(N, K) their rows."""

    def near_duplicates(self, at_least: float = 0.97) -> list[tuple[int, int, float]]:
        """Return pairs of similar images; see `near_duplicates`."""
        pairs: dict[tuple[int, int], float] = {}
        for one, neighbor in np.argwhere(self.scores >= at_least).tolist():
            other = int(self.rows[one, neighbor])
            if one != other:
                pairs[min(one, other), max(one, other)] = float(self.scores[one, neighbor])
        ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(one, other, score) for (one, other), score in ordered]

    def outliers(self) -> list[tuple[int, float]]:
        """Return the images that resemble others least, and their mean similarity to ten others; see `outliers`."""
        others = self.rows != np.arange(len(self.rows))[:, None]
        others &= others.cumsum(axis=1) <= _NEIGHBORS
        means = np.where(others, self.scores, 0).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
        return [(row, float(means[row])) for row in np.argsort(means, kind="stable").tolist()]


def neighbors_of(index: "Index", progress: Callable[[float], None] | None = None) -> Neighbors:
    """Return the ten most similar images of each image.

    Args:
        index: the index.
        progress: receives the share that is done, from time to time.
    """
    count = min(_NEIGHBORS + 1, len(index))
    found = Neighbors(np.empty((len(index), count), np.float32), np.empty((len(index), count), np.int64))
    for start in range(0, len(index), _BLOCK):
        part = slice(start, start + _BLOCK)
        vectors = torch.nn.functional.normalize(as_float32(index.features[part]), dim=1)
        _, rows = index.nearest.top(vectors, count)
        # Stored features have unit length only up to the rounding to float16.
        neighbors = torch.nn.functional.normalize(as_float32(index.features[rows.numpy()]), dim=2)
        found.scores[part] = (neighbors @ vectors[:, :, None])[:, :, 0].numpy()
        found.rows[part] = rows.numpy()
        if progress is not None:
            progress(min(start + _BLOCK, len(index)) / len(index))
    return found


def near_duplicates(index: "Index", at_least: float = 0.97) -> list[tuple[int, int, float]]:
    """Return pairs of similar images, the most similar first, as (lower row, higher row, cosine).

    Only the ten nearest neighbors of an image are compared with it.

    Args:
        index: the index.
        at_least: smallest cosine similarity of a pair.
    """
    return neighbors_of(index).near_duplicates(at_least)


def outliers(index: "Index") -> list[tuple[int, float]]:
    """Return all rows with the mean cosine similarity to their ten most similar images, the lowest first."""
    return neighbors_of(index).outliers()


def doubtful_captions(
    index: "Index", count: int = 100, progress: Callable[[float], None] | None = None
) -> list[DoubtfulCaption]:
    """Return the captions that fit their image and its other captions least, the most doubtful first.

    Args:
        index: the index.
        count: maximum number of captions.
        progress: receives the share that is done, from time to time.
    """
    if not index.texts:
        return []
    captions = index.rows[CAPTIONS].combine_chunks()
    image_of = pc.list_parent_indices(captions).to_numpy()
    text_of = pc.index_in(pc.list_flatten(captions), value_set=pa.array(index.texts)).to_numpy()
    sample = as_float32(index.text_features[np.unique(np.linspace(0, len(index.texts) - 1, _SAMPLE).astype(np.int64))])
    scores, fits, agreements = np.empty(len(image_of), np.float32), np.empty(len(image_of)), np.empty(len(image_of))
    # Captions are in the order of their images, so a block of images has all captions of each.
    ends = np.searchsorted(image_of, np.arange(0, len(index) + _IMAGES, _IMAGES))
    for start, end in pairwise(ends.tolist()):
        part = slice(start, end)
        texts = as_float32(index.text_features[text_of[part]])
        scores[part] = (texts * as_float32(index.features[image_of[part]])).sum(dim=1).numpy()
        nulls = np.array([index.nulls.of_query(text) for text in texts]).reshape(-1, 2)
        fits[part] = (scores[part] - nulls[:, 0]) / nulls[:, 1]
        agreements[part] = _agreements(texts, image_of[part], sample)
        if progress is not None:
            progress(end / len(image_of))
    worst = np.argsort(fits + np.nan_to_num(agreements), kind="stable")[:count]
    better_scores, better = index.nearest.top(as_float32(index.text_features[text_of[worst]]), 1)
    return [
        DoubtfulCaption(
            int(image_of[n]),
            index.texts[text_of[n]],
            float(scores[n]),
            float(fits[n]),
            None if np.isnan(agreements[n]) else float(agreements[n]),
            int(row),
            float(score),
        )
        for n, row, score in zip(worst.tolist(), better[:, 0].tolist(), better_scores[:, 0].tolist(), strict=True)
    ]


def _agreements(
    texts: Float[Tensor, "T D"], image_of: NDArray[np.int64], sample: Float[Tensor, "S D"]
) -> NDArray[np.float64]:
    """Return (T,) agreement of each caption with the other captions of its image; NaN if there are no others."""
    numbers = torch.from_numpy(image_of - image_of[:1])
    counts = torch.bincount(numbers)
    others = torch.zeros(len(counts), texts.shape[1]).index_add_(0, numbers, texts)[numbers] - texts
    means = ((others * texts).sum(dim=1) / (counts[numbers] - 1)).double().numpy()  # NaN for 0 / 0
    low, middle = np.quantile((texts @ sample.T).double().numpy(), [0.25, 0.5], axis=1)
    alone = (counts[numbers] == 1).numpy()
    return np.where(alone, np.nan, (means - middle) / np.maximum((middle - low) / 0.6745, 1e-4))
