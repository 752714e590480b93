"""Doubtful captions: how well each caption fits its image and agrees with the other captions of the image.

The fit and the agreement of a caption are (s - m) / d. The lower spread d is (median - lower quartile) / 0.6745.

    fit        s     cosine similarity of the caption and its image
               m, d  median and lower spread of the similarities of the caption with a sample of images
    agreement  s     mean cosine similarity of the caption with the two most similar other captions of the image
               m, d  median and lower spread of the similarities of the caption with a sample of captions

The agreement uses only two captions, because other captions of the image may be wrong too. A lower sum of fit and
agreement means a more doubtful caption. If an image has only one caption, the sum is the fit.

To estimate the share p of wrong captions, one caption of each image is exchanged for a caption of another image. F(t)
is the share of all captions whose sum is at most t. R(t) is the same share of the exchanged captions. Assume that the
sums of wrong captions are distributed like the sums of exchanged captions. Then F(t) >= p R(t), and both sides are
equal if no correct caption has a sum of at most t. Therefore p is estimated as the minimum of F(t) / R(t) over all t
with R(t) >= 1/2. Among the captions with a sum of at most t, the share of wrong captions is p R(t) / F(t). Both
estimates are too high if many correct captions have sums as low as exchanged captions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.sequences import evenly_spaced
from clipkit.search.nearest import as_float32

_IMAGES = 256  # number of images whose captions are compared in one step
_IMAGE_SAMPLE, _TEXT_SAMPLE = 4096, 1024
_AGREEING = 2
_LEAST = 0.5  # smallest R(t) at which the share of wrong captions is estimated


@dataclass(frozen=True)
class Doubts:
    """Numbers that tell how doubtful each of M captions is."""

    scores: NDArray[np.float32]
    """(M,) cosine similarity of the caption and its image."""
    fits: NDArray[np.float64]
    """(M,) fit to the image."""
    agreements: NDArray[np.float64]
    """(M,) agreement with the other captions of the image; NaN if the image has no other caption."""

    @property
    def totals(self) -> NDArray[np.float64]:
        """(M,) sum of fit and agreement. A lower sum means a more doubtful caption."""
        return totals_of(self.fits, self.agreements)


def totals_of(fits: NDArray[np.float64], agreements: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (M,) sums of fits and agreements. An agreement of NaN is replaced by 0."""
    return fits + np.nan_to_num(agreements)


def doubts_of(
    images: NDArray[np.float16],
    texts: NDArray[np.float16],
    text_of: NDArray[np.int64],
    image_of: NDArray[np.int64],
    progress: Callable[[float], None] | None = None,
) -> Doubts:
    """Return how doubtful each caption is.

    Args:
        images: (N, D) unit-length features of the images.
        texts: (T, D) unit-length features of the distinct captions.
        text_of: (M,) row in `texts` of each caption.
        image_of: (M,) row in `images` of each caption's image, ascending.
        progress: called from time to time with the completed share (0 to 1) of the work.
    """
    image_sample, text_sample = (
        torch.from_numpy(as_float32(rows[evenly_spaced(len(rows), most)]))
        for rows, most in ((images, _IMAGE_SAMPLE), (texts, _TEXT_SAMPLE))
    )
    scores, fits, agreements = np.empty(len(image_of), np.float32), np.empty(len(image_of)), np.empty(len(image_of))
    # Captions are in the order of their images, so a block of images has all captions of each.
    ends = np.searchsorted(image_of, np.arange(0, len(images) + _IMAGES, _IMAGES))
    for start, end in pairwise(ends.tolist()):
        part = slice(start, end)
        features = torch.from_numpy(as_float32(texts[text_of[part]]))
        scores[part] = (features.numpy() * as_float32(images[image_of[part]])).sum(axis=1)
        fits[part] = _in_spreads(scores[part], features @ image_sample.T)
        similar = _similarity_to_others(features, image_of[part])
        agreements[part] = _in_spreads(similar, features @ text_sample.T)
        if progress is not None:
            progress(end / len(image_of))
    return Doubts(scores, fits, agreements)


def doubts_of_exchanged(
    images: NDArray[np.float16],
    texts: NDArray[np.float16],
    text_of: NDArray[np.int64],
    image_of: NDArray[np.int64],
    seed: int = 0,
) -> NDArray[np.float64]:
    """Exchange one caption per image for another image's caption; return how doubtful these captions are.

    Args:
        images, texts, text_of, image_of: as for `doubts_of`.
        seed: seed of the random choice of captions.

    Returns:
        The sum of fit and agreement of each exchanged caption.
    """
    generator = np.random.default_rng(seed)
    _, first, count = np.unique(image_of, return_index=True, return_counts=True)
    chosen = generator.permutation(first + generator.integers(count))
    exchanged = text_of.copy()
    exchanged[chosen] = text_of[np.roll(chosen, 1)]
    return doubts_of(images, texts, exchanged, image_of).totals[chosen]


def wrong_among(totals: NDArray[np.float64], exchanged: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Estimate the share of wrong captions (formulas: docstring of the module).

    Args:
        totals: (M,) sums of fit and agreement of the captions.
        exchanged: (R,) sums of fit and agreement of captions that are known to be wrong.

    Returns:
        The share of wrong captions. For each of the M captions, the share of wrong captions among the captions that
        are at least as doubtful.

    Example:
        >>> share, among = wrong_among(np.array([0.1, 5.0, 6.0, 7.0]), np.array([-1.0, 0.0, 1.0, 2.0]))
        >>> share, among.round(2).tolist()
        (0.25, [0.5, 0.5, 0.33, 0.25])
    """
    ordered = np.sort(totals)
    below = np.searchsorted(ordered, totals, side="right") / len(totals)
    random = np.searchsorted(np.sort(exchanged), totals, side="right") / len(exchanged)
    at = np.sort(exchanged)[len(exchanged) // 2 :]
    ranks = np.arange(len(exchanged) // 2 + 1, len(exchanged) + 1) / len(exchanged)
    share = float(np.min(np.searchsorted(ordered, at, side="right") / len(totals) / ranks))
    return share, np.minimum(1, share * random / below)


def _in_spreads(values: NDArray[np.float32], others: Float[Tensor, "T S"]) -> NDArray[np.float64]:
    """Return (values - m) / d, with the median m and d = (m - lower quartile) / 0.6745 of each row of `others`."""
    low, middle = np.quantile(others.double().numpy(), [0.25, 0.5], axis=1)
    return (values - middle) / np.maximum((middle - low) / 0.6745, 1e-4)


def _similarity_to_others(texts: Float[Tensor, "T D"], image_of: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean cosine similarity of each caption to the two most similar other captions of its image.

    The value is NaN for the only caption of an image. `image_of` must be ascending.
    """
    similar = np.full(len(texts), np.nan, np.float32)
    for rows in np.split(np.arange(len(texts)), np.flatnonzero(np.diff(image_of)) + 1):
        if len(rows) > 1:
            among = texts[rows] @ texts[rows].T
            among.fill_diagonal_(-np.inf)
            similar[rows] = among.topk(min(_AGREEING, len(rows) - 1), dim=1).values.mean(dim=1).numpy()
    return similar
