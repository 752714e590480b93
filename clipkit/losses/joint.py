"""Common part of NT-Xent, supervised contrastive and decoupled loss: all 2G features are compared with each other."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses.pair_ids import PairIds
from clipkit.losses.positives import Duplicates, Positives, check_negatives, paired_ids
from clipkit.losses.tiles import tiled_row_logsumexp


def joint(
    image: Float[Tensor, "G D"],
    text: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    image_ids: Int[Tensor, " G"] | None,
    caption_ids: Int[Tensor, " G"] | None,
    duplicates: Duplicates,
    rows: slice | None,
    decoupled: bool,
) -> Float[Tensor, ""]:
    """Return the mean over all 2G features a of (log Σ_b exp(s_ab)) − (mean of s_ap over the positives p of a).

    The features are of images and texts; b is each other feature, and s is the scaled cosine similarity.

    Args:
        image: unit length.
        text: unit length.
        scale: inverse temperature.
        image_ids: ID of each pair's image.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat another pair with the same image or caption, in both modalities.
        rows: pairs whose image and text terms are summed; None: all. If slices divide the
            batch, their values add up to the mean.
        decoupled: leave the positives out of the sum of exponentials.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    pairs = len(image)
    counted = slice(0, pairs) if rows is None else rows
    given = paired_ids(image_ids, caption_ids)
    ids = () if given is None or duplicates == "negative" else given
    groups = Positives(*ids) if ids else None
    position = torch.arange(pairs, device=image.device)
    shared = torch.ones_like(position) if groups is None else groups.count
    check_negatives(pairs - shared, image_ids, caption_ids)
    left_out = ids if duplicates == "ignore" or decoupled else ()
    rows_out = tuple(one[counted] for one in left_out)
    cross = PairIds(position[counted], position, rows_out, left_out, without_self=decoupled)
    within = PairIds(position[counted], position, rows_out, left_out, without_self=True)
    # Pairs without negatives: every other pair of the batch is a positive.
    lonely = shared[counted] == pairs
    total = image.new_zeros(())
    for queries, other in ((image, text), (text, image)):
        over_others = tiled_row_logsumexp(queries[counted], other, scale, cross if left_out or decoupled else None)
        over_queries = tiled_row_logsumexp(queries[counted], queries, scale, within)
        if groups is None or duplicates != "positive":
            positive = (queries[counted] * other[counted]).sum(dim=1)
        else:
            together = groups.sums(other)[counted] + groups.sums(queries)[counted] - queries[counted]
            positive = (queries[counted] * together).sum(dim=1) / (2 * groups.count[counted] - 1)
        if decoupled:  # without negatives, the denominator is empty
            over_others, over_queries = (one.masked_fill(lonely, 0) for one in (over_others, over_queries))
        terms = torch.logaddexp(over_others, over_queries) - scale * positive
        total = total + (terms.masked_fill(lonely, 0) if decoupled else terms).sum()
    return total / (2 * pairs)
