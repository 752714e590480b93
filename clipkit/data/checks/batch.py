"""Estimate of the false negatives in a batch: rows with the same caption or image as another row."""

import math
from math import lgamma
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.checks.captions import as_mask
from clipkit.data.checks.checked_data import CheckedData, DataRule
from clipkit.data.checks.duplicates import Duplicates
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Strings
from clipkit.findings import FEW, Finding, percent

# Share of rows with a repeated caption or image that is reported even if the loss counts such rows as positives.
_MANY = 0.5


def expected_false_negatives(pairs: Pairs, duplicates: Duplicates | None, batch_size: int) -> dict[str, Any]:
    """Estimate how many rows of a random batch have the same caption or image as another row.

    A batch contains each image at most once, but two different images may be duplicates. Each image has one of its
    captions, as in training. Two given images are both in the batch with probability G (G - 1) / (N (N - 1)).

    Args:
        pairs: N images with captions.
        duplicates: duplicate images; None: unknown.
        batch_size: number of pairs in the batch, G, at most N.

    Returns:
        A dict of estimates:
        `size`: G.
        `same_caption`: expected number of pairs of rows with equal captions.
        `same_image`: expected number of pairs of rows with duplicate images.
        `rows`: expected number of rows with the same caption or image as another row.
    """
    count = len(pairs.images)
    size = min(batch_size, count)
    together = size * (size - 1) / (count * (count - 1)) if count > 1 else 0.0
    shares, sums = _equal_captions(pairs) if pairs.has_captions else (np.zeros(0), np.zeros(0))
    equal = max(0.0, float((shares * (sums - shares)).sum() / 2))
    # Share of rows whose caption, and share of rows whose image, occurs again in the batch; nearly independent.
    with_caption = float((shares * _any_of(sums - shares, count, size)).sum()) / max(1, count)
    with_image = 0.0 if duplicates is None else float(_any_of(duplicates.degrees, count, size).mean())
    return {
        "size": batch_size,
        "same_caption": together * equal,
        "same_image": together * duplicates.pairs if duplicates is not None else 0.0,
        "rows": size * (with_caption + with_image - with_caption * with_image),
    }


def _any_of(partners: NDArray[Any], count: int, size: int) -> NDArray[np.float64]:
    """Return the probability that the other images of a batch include a match of a given image.

    If the data has k matches of the image, the probability is 1 − C(N−1−k, G−1) / C(N−1, G−1).

    Args:
        partners: k for each returned probability; may be an expected value, and thus a fraction.
        count: number of images in the data, N.
        size: number of images in the batch, G.
    """
    different, row = np.unique(partners, return_inverse=True)
    none = [
        math.exp(lgamma(count - k) - lgamma(count - k - size + 1) - lgamma(count) + lgamma(count - size + 1))
        if count - k - size + 1 > 0
        else 0.0
        for k in different.tolist()
    ]
    return 1 - np.array(none)[row] if len(none) else np.zeros(0)


def _equal_captions(pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two values for each (image, distinct caption of this image).

    The first value is the probability that training draws this caption for the image. The second value is the sum of
    the first values over all images that have an equal caption, including this image.
    """
    images = pairs.image_of_caption
    weight = 1 / np.bincount(images, minlength=len(pairs.images))[images]
    filled = ~as_mask(pc.equal(Strings.of(pairs.captions).column, ""))
    # One entry per image and distinct caption: two equal captions of one image are not a pair.
    keys, entry = np.unique((pairs.caption_ids * len(pairs.images) + images)[filled], return_inverse=True)
    shares = np.bincount(entry, weight[filled], len(keys))
    caption = np.unique(keys // len(pairs.images), return_inverse=True)[1]
    return shares.astype(np.float64), np.bincount(caption, shares)[caption].astype(np.float64)


def batch_too_large(data: CheckedData) -> Finding | None:
    """Report a batch that is larger than the dataset."""
    images = len(data.pairs.images)
    if data.batch is None or data.batch["size"] <= images:
        return None
    assumed = data.batch.get("assumed", False)
    return Finding(
        "batch_too_large", "note" if assumed else "warning",
        f"a batch of {data.batch['size']:,}{' (the default of a recipe)' * assumed} is larger than the data "
        f"({images:,} images)",
        "training needs at least one full batch: lower train.batch_size, or use more data", count=images, share=1.0,
    )  # fmt: skip


def false_negatives(data: CheckedData) -> Finding | None:
    """Report that many rows of a batch have the same caption or image as another row."""
    if data.batch is None:
        return None
    size = max(1, min(data.batch["size"], len(data.pairs.images)))
    expected = data.batch["rows"]
    share = expected / size
    if share < (_MANY if data.loss_counts_duplicates == "positive" else FEW):
        return None
    advice = {
        None: "use a loss that counts equal captions as positives (loss.duplicates: positive, the default), and merge "
        "duplicate images (--fix)",
        "negative": "set loss.duplicates: positive",
        "positive": "the loss counts such rows as positives, but varied captions are more informative; if the captions "
        "are class names, use a smaller batch",
    }
    return Finding(
        "false_negatives", "warning",
        f"in a batch of {size:,} rows, about {expected:,.0f} ({percent(share)}) are expected to have the same caption "
        "or "
        f"image as another row",
        advice[data.loss_counts_duplicates], count=round(expected), share=share,
    )  # fmt: skip


BATCH_RULES = (
    DataRule("batch_too_large", batch_too_large, "the batch is larger than the dataset", "images", "full"),
    DataRule("false_negatives", false_negatives,
         "1 % of the rows of a batch have the same caption or image as another row (50 % if the loss counts these as "
         "positives)",
         "images", "sampled"),
)  # fmt: skip
