"""Common implementation of NT-Xent, the supervised contrastive loss and the decoupled contrastive loss.

These losses compare each of the 2G image and text features with all other features.
"""

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
    """Return the mean of log Σ_b exp(s_ab) − mean_p(s_ap) over all 2G image and text features a.

    s_ab is the scaled cosine similarity of features a and b. The sum is over all other features b. The inner mean is
    over the positives p of a.

    Args:
        image: image features of unit length.
        text: text features of unit length.
        scale: inverse temperature.
        image_ids: ID of each pair's image.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat other pairs with the same image or caption.
        rows: pairs whose image and text features a are included. None: all pairs. The values of disjoint slices that
            cover the batch add up to the mean.
        decoupled: leave the positives out of the sum of exponentials.

    Raises:
        BatchError: no pair has a negative.
        ValueError: only one of `image_ids` and `caption_ids` is given.
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
