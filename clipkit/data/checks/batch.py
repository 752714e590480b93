"""Estimate of false negatives in a batch: pairs whose caption or image also occurs in another pair."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from clipkit.data.checks.captions import as_mask
from clipkit.data.checks.checked_data import CheckedData, DataRule
from clipkit.data.checks.duplicates import Duplicates
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Strings
from clipkit.findings import FEW, Finding, percent

# Share of pairs with a repeated caption that is too high even for a loss that counts equal captions as positives.
_MANY = 0.5


def expected_false_negatives(pairs: Pairs, duplicates: Duplicates | None, batch_size: int) -> dict[str, Any]:
    """Estimate how many pairs of rows in one batch have the same caption or image.

    A batch contains different images, each with one of its captions, as in training. Two given images are in it
    together with probability G (G - 1) / (N (N - 1)).

    Args:
        pairs: N images with captions.
        duplicates: groups of duplicate images; None: unknown.
        batch_size: number of pairs in the batch, G, at most N.

    Returns:
        `size` (G), `same_caption` (expected pairs of rows with equal captions and different images), and `same_image`
        (expected pairs of rows with different images that are duplicates).
    """
    count = len(pairs.images)
    size = min(batch_size, count)
    together = size * (size - 1) / (count * (count - 1)) if count > 1 else 0.0
    return {
        "size": batch_size,
        "same_caption": together * _equal_caption_pairs(pairs) if pairs.has_captions else 0.0,
        "same_image": together * duplicates.pairs if duplicates is not None else 0.0,
    }


def _equal_caption_pairs(pairs: Pairs) -> float:
    """Return the expected number of pairs of different images with equal captions, one caption drawn per image."""
    images = pairs.image_of_caption
    weight = 1 / np.bincount(images, minlength=len(pairs.images))[images]
    filled = ~as_mask(pc.equal(Strings.of(pairs.captions).column, ""))
    # One entry per image and distinct caption: two equal captions of one image are not a pair.
    keys, entry = np.unique((pairs.caption_ids * len(pairs.images) + images)[filled], return_inverse=True)
    shares = np.bincount(entry, weight[filled], len(keys))
    caption = np.unique(keys // len(pairs.images), return_inverse=True)[1]
    squares, sums = np.bincount(caption, shares**2), np.bincount(caption, shares)
    return max(0.0, float((sums**2 - squares).sum() / 2))


def batch_too_large(data: CheckedData) -> Finding | None:
    """Report a batch that is larger than the dataset."""
    images = len(data.pairs.images)
    if data.batch is None or data.batch["size"] <= images:
        return None
    return Finding(
        "batch_too_large", "warning", f"a batch of {data.batch['size']:,} is larger than the {images:,} images",
        "training needs at least one batch: use a smaller train.batch_size, or more data", count=images, share=1.0,
    )  # fmt: skip


def false_negatives(data: CheckedData) -> Finding | None:
    """Report a batch size at which many rows have the same caption or image as another row."""
    if data.batch is None:
        return None
    size = max(1, min(data.batch["size"], len(data.pairs.images)))
    expected = 2 * (data.batch["same_caption"] + data.batch["same_image"])  # each pair of rows contributes two rows
    share = min(1.0, expected / size)
    if share < (_MANY if data.loss_counts_duplicates == "positive" else FEW):
        return None
    advice = {
        None: "use a loss that counts equal captions as positives (loss.duplicates: positive, the default), and merge "
        "duplicate images (--fix)",
        "negative": "set loss.duplicates: positive",
        "positive": "the loss counts them as positives, but varied captions are more informative; if the "
        "captions are class "
        "names, use a smaller batch",
    }
    return Finding(
        "false_negatives", "warning",
        f"rows of a batch of {data.batch['size']:,} with the same caption or image as another row: {percent(share)} "
        "expected",
        advice[data.loss_counts_duplicates], count=round(expected), share=share,
    )  # fmt: skip


BATCH_RULES = (
    DataRule("batch_too_large", batch_too_large, "the batch is larger than the dataset", "images", "full"),
    DataRule("false_negatives", false_negatives,
         "1 % of the rows of a batch have the same caption or image as another row (50 % if the loss counts these as "
         "positives)",
         "images", "sampled"),
)  # fmt: skip
