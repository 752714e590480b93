"""Triplet loss with margin, and the max of hinges of image and text."""

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
    r"""A positive is to be nearer than a negative by a margin: images asking texts, and texts asking images.

    .. math:: \big[ m + d_{ap} - d_{an} \big]_+

    (Schroff et al. 2015, "FaceNet", section 3.1.) Which triplets count, by `mining`:

    hard: of each anchor the farthest positive with the nearest negative; mean over the anchors, satisfied ones too.
    With one positive it is the max of hinges of image and text (Faghri et al. 2018, "VSE++"), of which it is the mean
    where they take the sum. all: every triplet; mean over those that violate the margin (Hermans et al. 2017, "In
    Defense of the Triplet Loss", batch all ≠ 0). semihard: the same over negatives that are farther than the positive
    but within the margin.

    All triplets are summed by sorting, in O(G² log G) time; no G³ anything is there. Every process counts the
    violations of the others' rows too, so this time is not shared.

    Args:
        image_features: unit length, one row a pair.
        text_features: unit length, row i belongs to row i of the images.
        margin: in the units of the distance: cosine in [0, 2], euclidean in [0, 2].
        mining: see above.
        distance: cosine: 1 − x · y; euclidean: ‖x − y‖.
        image_ids: the image of each pair, where images may repeat.
        caption_ids: the caption of each pair, where captions may repeat; given together with `image_ids`.
        duplicates: another pair with the same image or caption is a positive, left out, or a negative.
        rows: the pairs whose two anchors are counted; over slices that cover 0..G the values sum to the whole loss.

    Returns:
        The sum over the counted pairs' anchors, divided by the number that the mean is over in the whole batch; 0 where
        no triplet violates the margin.

    Raises:
        BatchError: no pair has a negative.
        ValueError: one kind of ids without the other.

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

    def sums(asking: Tensor, others: Tensor, band: slice) -> tuple[Tensor, Tensor]:
        with torch.autocast(asking.device.type, enabled=False):
            nearness = _nearness(asking[band], others, distance)
            positive, negative = relations.of(band)
            if mining == "hard":
                return _hardest(nearness, positive, negative, margin), nearness.new_zeros(())
            return _violations(nearness, positive, negative, margin, semihard=mining == "semihard")

    def both_ways(band: slice) -> Tensor:
        """Sum and number, in float64, which holds both exactly enough."""
        found = [sums(*sides, band) for sides in ((image, text), (text, image))]
        return torch.stack([torch.stack([part.double() for part in own]) for own in found]).sum(dim=0)

    value, number = sum_over_bands(counted, pairs, both_ways)
    # The mean is over all rows, whoever counts them.
    if mining == "hard":
        number = 2 * (relations.negatives > 0).sum()
    else:
        with torch.no_grad():
            for others in (slice(0, counted.start), slice(counted.stop, pairs)):
                if others.start < others.stop:
                    number = number + sum_over_bands(others, pairs, both_ways)[1]
    return (value / number.detach().clamp(min=1)).to(dtype)


def _nearness(x: Float[Tensor, "R D"], y: Float[Tensor, "C D"], distance: Distance) -> Float[Tensor, "R C"]:
    """Minus the distance, up to a constant."""
    if distance == "cosine":
        return x @ y.T
    # Of unit vectors. The root's gradient is without bound at 0, where two features are the same.
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
    """Sum and number of violations over all (positive, negative) of each row.

    Of negatives in rising order, those above a positive's limit are a suffix: their sum is a difference of cumulated
    sums, their number a position.
    """
    rising = nearness.masked_fill(~negative, -torch.inf).sort(dim=1).values
    columns = rising.shape[1]
    # In float64: the difference may be of two sums over thousands, and small.
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
