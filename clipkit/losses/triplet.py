"""Triplet loss with a margin, including the hard-negative loss of VSE++."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.losses.bands import sum_over_bands
from clipkit.losses.positives import Duplicates, Relations

Mining = Literal["all", "semihard", "hard"]
Distance = Literal["cosine", "euclidean"]


def triplet(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    *,
    margin: float = 0.2,
    mining: Mining = "hard",
    distance: Distance = "cosine",
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    duplicates: Duplicates = "positive",
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Make each positive more similar than the negatives by a margin, for image anchors and text anchors.

    .. math:: \big[ m + d_{ap} - d_{an} \big]_+

    m is the margin, d_ap is the distance of an anchor to a positive, and d_an is the distance to a negative (Schroff et
    al. 2015, "FaceNet", section 3.1). The loss is the mean over triplets (anchor, positive, negative). `mining`
    determines the triplets:

    - hard: the farthest positive and the nearest negative of each anchor. With one positive per anchor, this is the max
      of hinges of VSE++ (Faghri et al. 2018), as a mean instead of a sum.
    - all: every triplet that violates the margin. This is "batch all ≠ 0" of Hermans et al. 2017, "In Defense of the
      Triplet Loss".
    - semihard: every triplet that violates the margin and whose negative is farther than the positive.

    For "all" and "semihard", the sum over triplets is computed by sorting, in O(G² log G) time and without a G³ tensor.
    This time does not decrease with more processes.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        margin: minimum difference in [0, 2] between the distance of a negative and the distance of a positive.
        mining: "hard", "all" or "semihard"; see above.
        distance: "cosine" (1 − x · y) or "euclidean" (‖x − y‖).
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat other pairs with the same image or caption: "positive", "negative" or "ignore".
        rows: pairs whose terms are summed. Default: all pairs. The values of slices that partition the batch add up to
            the loss.

    Returns:
        The sum of the terms of the image and text anchors of the pairs in `rows`, divided by the number of triplets in
        the whole batch. It is 0 if no triplet violates the margin.

    Raises:
        BatchError: no pair has a negative.
        ValueError: only one of `image_ids` and `caption_ids` is given.

    Example:
        >>> x = torch.eye(3)
        >>> triplet(x, x, margin=0.2).item(), triplet(x, x.roll(1, 0), margin=0.2).item()
        (0.0, 1.2000000476837158)
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    pairs = len(image)
    counted = slice(0, pairs) if rows is None else rows
    relations = Relations(pairs, image_ids, caption_ids, duplicates, image.device)

    def sums(queries: Tensor, candidates: Tensor, band: slice) -> tuple[Tensor, Tensor]:
        with torch.autocast(queries.device.type, enabled=False):
            nearness = _nearness(queries[band], candidates, distance)
            positive, negative = relations.of(band)
            if mining == "hard":
                return _hardest(nearness, positive, negative, margin), nearness.new_zeros(())
            return _violations(nearness, positive, negative, margin, semihard=mining == "semihard")

    def both_ways(band: slice) -> Tensor:
        """Return the sum over the triplets of the pairs in a band, and the number of triplets, in float64."""
        directions = [sums(*sides, band) for sides in ((image, text), (text, image))]
        return torch.stack([torch.stack([part.double() for part in parts]) for parts in directions]).sum(dim=0)

    value, number = sum_over_bands(counted, pairs, both_ways)
    # The mean is over the triplets of the whole batch, so the triplets of the other rows are also counted.
    if mining == "hard":
        number = 2 * (relations.negatives > 0).sum()
    else:
        with torch.no_grad():
            for others in (slice(0, counted.start), slice(counted.stop, pairs)):
                if others.start < others.stop:
                    number = number + sum_over_bands(others, pairs, both_ways)[1]
    return (value / number.detach().clamp(min=1)).to(dtype)


def _nearness(x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], distance: Distance) -> Float[Tensor, "R C"]:
    """Return how near each row of x is to each row of y: a constant minus the distance."""
    if distance == "cosine":
        return x @ y.T
    # Valid for unit vectors. The gradient of the square root is infinite at 0, so the squared distance is at least eps.
    return -(2 - 2 * (x @ y.T)).clamp(min=torch.finfo(x.dtype).eps).sqrt()


def _hardest(
    nearness: Float[Tensor, "R C"], positive: Bool[Tensor, "R C"], negative: Bool[Tensor, "R C"], margin: float
) -> Float[Tensor, ""]:
    farthest = nearness.masked_fill(~positive, torch.inf).amin(dim=1)
    nearest = nearness.masked_fill(~negative, -torch.inf).amax(dim=1)
    return (margin - farthest + nearest).clamp(min=0).sum()


def _violations(
    nearness: Float[Tensor, "R C"],
    positive: Bool[Tensor, "R C"],
    negative: Bool[Tensor, "R C"],
    margin: float,
    semihard: bool,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return the sum and the number of the margin violations of the triplets. Rows are anchors."""
    # The negatives of each row are sorted by nearness. The negatives that violate the margin of a positive are the last
    # ones, so their sum is a difference of cumulative sums, and their number is a difference of positions.
    rising = nearness.masked_fill(~negative, -torch.inf).sort(dim=1).values
    columns = rising.shape[1]
    # Sums are in float64, because the difference of two large sums may be small.
    finite = rising.masked_fill(rising.isinf(), 0)
    cumulated = torch.cat([finite.new_zeros(len(finite), 1).double(), finite.cumsum(dim=1, dtype=torch.float64)], dim=1)
    limit = nearness - margin
    start = torch.searchsorted(rising.detach(), limit.detach().contiguous(), right=True)
    stop = torch.full_like(start, columns)
    if semihard:
        stop = torch.searchsorted(rising.detach(), nearness.detach().contiguous())
        start = torch.minimum(start, stop)
    number = (stop - start).masked_fill(~positive, 0)
    sums = cumulated.gather(1, stop) - cumulated.gather(1, start) - (stop - start) * limit
    return sums.masked_fill(~positive, 0).sum().to(nearness.dtype), number.sum()
