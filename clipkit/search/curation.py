"""Search of an index for images that resemble each other, and for captions that do not fit their image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from clipkit.search.nearest import as_float32
from clipkit.search.source import CAPTIONS

if TYPE_CHECKING:
    from clipkit.search.index import Index

_BLOCK = 1024
_NEIGHBORS = 10


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
    better_row: int
    """The image that the caption fits best."""
    better_score: float


def near_duplicates(index: "Index", at_least: float = 0.97) -> list[tuple[int, int, float]]:
    """Return pairs of similar images, the most similar first, as (lower row, higher row, cosine).

    Only the ten nearest neighbors of an image are compared with it.

    Args:
        index: the index.
        at_least: smallest cosine similarity of a pair.
    """
    pairs: dict[tuple[int, int], float] = {}
    for start in range(0, len(index), _BLOCK):
        vectors = torch.nn.functional.normalize(as_float32(index.features[start : start + _BLOCK]), dim=1)
        _, rows = index.nearest.top(vectors, _NEIGHBORS + 1)
        # Stored features have unit length only up to the rounding to float16.
        neighbors = torch.nn.functional.normalize(as_float32(index.features[rows.numpy()]), dim=2)
        scores = (neighbors @ vectors[:, :, None])[:, :, 0]
        for offset, neighbor in (scores >= at_least).nonzero().tolist():
            one, other = start + offset, int(rows[offset, neighbor])
            if one != other:
                pairs[min(one, other), max(one, other)] = float(scores[offset, neighbor])
    ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(one, other, score) for (one, other), score in ordered]


def doubtful_captions(index: "Index", count: int = 100) -> list[DoubtfulCaption]:
    """Return the captions that fit their image least, the most doubtful first.

    Args:
        index: the index.
        count: maximum number of captions.
    """
    if not index.texts:
        return []
    captions = index.rows[CAPTIONS].combine_chunks()
    image_of = pc.list_parent_indices(captions).to_numpy()
    text_of = pc.index_in(pc.list_flatten(captions), value_set=pa.array(index.texts)).to_numpy()
    scores, fits = np.empty(len(image_of), np.float32), np.empty(len(image_of))
    for start in range(0, len(image_of), _BLOCK):
        part = slice(start, start + _BLOCK)
        texts = as_float32(index.text_features[text_of[part]])
        scores[part] = (texts * as_float32(index.features[image_of[part]])).sum(dim=1).numpy()
        nulls = np.array([index.nulls.of_query(text) for text in texts])
        fits[part] = (scores[part] - nulls[:, 0]) / nulls[:, 1]
    worst = np.argsort(fits, kind="stable")[:count]
    better_scores, better = index.nearest.top(as_float32(index.text_features[text_of[worst]]), 1)
    return [
        DoubtfulCaption(
            int(image_of[n]), index.texts[text_of[n]], float(scores[n]), float(fits[n]), int(row), float(score)
        )
        for n, row, score in zip(worst.tolist(), better[:, 0].tolist(), better_scores[:, 0].tolist(), strict=True)
    ]
