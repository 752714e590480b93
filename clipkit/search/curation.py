"""Near duplicates, outliers and doubtful captions, found by comparing the features of an index."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.search.doubts import doubts_of
from clipkit.search.layout import damaged, file_of
from clipkit.search.nearest import as_float32
from clipkit.search.source import CAPTIONS

if TYPE_CHECKING:
    from clipkit.search.index import Index

_BLOCK = 1024
_NEIGHBORS = 10


@dataclass(frozen=True)
class DoubtfulCaption:
    """A caption that may be wrong, because it fits its image worse than most captions do."""

    row: int
    caption: str
    score: float
    """Cosine similarity of the caption and its image."""
    fit: float
    """Fit to the image (`clipkit.search.doubts`): about 0 for the caption of another image."""
    agreement: float | None
    """Agreement with the other captions of the image; None for the only caption of an image."""
    better_row: int
    """The image that the caption fits best."""
    better_score: float


@dataclass(frozen=True)
class Neighbors:
    """The most similar images of each image, in descending order of similarity.

    The most similar images usually include the image itself.
    """

    scores: NDArray[np.float32]
    """(N, K) cosine similarities."""
    rows: NDArray[np.int64]
    """(N, K) rows of the similar images."""

    def near_duplicates(self, at_least: float = 0.97) -> list[tuple[int, int, float]]:
        """Return pairs of similar images as (lower row, higher row, cosine similarity), most similar first."""
        pairs: dict[tuple[int, int], float] = {}
        for one, neighbor in np.argwhere(self.scores >= at_least).tolist():
            other = int(self.rows[one, neighbor])
            if one != other:
                pairs[min(one, other), max(one, other)] = float(self.scores[one, neighbor])
        ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(one, other, score) for (one, other), score in ordered]

    def outliers(self) -> list[tuple[int, float]]:
        """Return (row, mean cosine similarity to the ten most similar other images) of each image, lowest first."""
        others = self.rows != np.arange(len(self.rows))[:, None]
        others &= others.cumsum(axis=1) <= _NEIGHBORS
        means = np.where(others, self.scores, 0).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
        return [(row, float(means[row])) for row in np.argsort(means, kind="stable").tolist()]


def neighbors_of(index: "Index", progress: Callable[[float], None] | None = None) -> Neighbors:
    """Find the ten most similar other images of each image. The result also contains the image itself.

    Args:
        index: the index.
        progress: called from time to time with the completed share (0 to 1) of the work.
    """
    count = min(_NEIGHBORS + 1, len(index))
    found = Neighbors(np.empty((len(index), count), np.float32), np.empty((len(index), count), np.int64))
    for start in range(0, len(index), _BLOCK):
        part = slice(start, start + _BLOCK)
        vectors = index.unit_features(part)
        _, rows = index.nearest.top(vectors, count)
        neighbors = index.unit_features(rows)
        found.scores[part] = (neighbors @ vectors[:, :, None])[:, :, 0]
        found.rows[part] = rows
        if progress is not None:
            progress(min(start + _BLOCK, len(index)) / len(index))
    return found


def near_duplicates(index: "Index", at_least: float = 0.97) -> list[tuple[int, int, float]]:
    """Return pairs of similar images as (lower row, higher row, cosine similarity), most similar first.

    Each image is compared with its ten most similar images only.

    Args:
        index: the index.
        at_least: smallest cosine similarity of a pair.
    """
    return neighbors_of(index).near_duplicates(at_least)


def outliers(index: "Index") -> list[tuple[int, float]]:
    """Return (row, mean cosine similarity to the ten most similar other images) of each image, lowest first."""
    return neighbors_of(index).outliers()


def doubtful_captions(
    index: "Index", count: int = 100, progress: Callable[[float], None] | None = None
) -> list[DoubtfulCaption]:
    """Return the `count` most doubtful captions, the most doubtful first.

    A caption is doubtful if its similarity to its image and to the other captions of the image is low (formula:
    `clipkit.search.doubts`).

    Args:
        index: the index.
        count: maximum number of captions.
        progress: called from time to time with the completed share (0 to 1) of the work.
    """
    if not index.texts:
        return []
    for kind, count_of in (("features", len(index)), ("textfeatures", len(index.texts))):
        for start in range(0, count_of, _BLOCK):
            index.unit_features(slice(start, start + _BLOCK), kind)  # a damaged caption would come first
    captions = index.rows[CAPTIONS].combine_chunks()
    image_of = pc.list_parent_indices(captions).to_numpy()
    found = pc.index_in(pc.list_flatten(captions), value_set=pa.array(index.texts))
    if found.null_count:
        raise damaged(file_of(index.path, index.manifest, "texts"), f"{found.null_count:,} captions are missing")
    text_of = found.to_numpy()
    doubts = doubts_of(index.features, index.text_features, text_of, image_of, progress)
    worst = np.argsort(doubts.totals, kind="stable")[:count]
    better_scores, better = index.nearest.top(as_float32(index.text_features[text_of[worst]]), 1)
    return [
        DoubtfulCaption(
            int(image_of[n]),
            index.texts[text_of[n]],
            float(doubts.scores[n]),
            float(doubts.fits[n]),
            None if np.isnan(doubts.agreements[n]) else float(doubts.agreements[n]),
            int(row),
            float(score),
        )
        for n, row, score in zip(worst.tolist(), better[:, 0].tolist(), better_scores[:, 0].tolist(), strict=True)
    ]
