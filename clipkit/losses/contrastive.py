"""Contrastive loss with a margin."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses.bands import sum_over_bands
from clipkit.losses.positives import Duplicates, Relations


def contrastive(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    *,
    margin: float = 0.5,
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    duplicates: Duplicates = "positive",
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Pull positives together, and push negatives apart up to a margin.

    .. math:: L = \tfrac12\, \overline{d_{ij}^2}\Big|_{positives}
        + \tfrac12\, \overline{[m - d_{ij}]_+^2}\Big|_{negatives}, \quad d_{ij} = 1 - x_i \cdot y_j

    The equation is from Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping", equation 4,
    with the cosine distance d and the margin m. Positives and negatives are averaged separately, because nearly all of
    the G² combinations are negatives.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        margin: cosine distance in [0, 2]. Negatives with at least this distance add 0 to the loss.
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat other pairs with the same image or caption: "positive", "negative" or "ignore".
        rows: images whose terms with all texts are summed. Default: all images. The values of slices that partition the
            batch add up to the loss.

    Returns:
        The sum of the terms of the images in `rows`. The terms of positives are divided by the number of positives in
        the whole batch, and the terms of negatives by the number of negatives in the whole batch.

    Raises:
        BatchError: no pair has a negative.
        ValueError: only one of `image_ids` and `caption_ids` is given.

    Example:
        >>> x = torch.eye(3)
        >>> contrastive(x, x).item(), contrastive(x, x.roll(1, 0)).item()
        (0.0, 0.5625)
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    pairs = len(image)
    relations = Relations(pairs, image_ids, caption_ids, duplicates, image.device)
    positives, negatives = relations.positives.sum(), relations.negatives.sum()

    def of_band(band: slice) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            distance = 1 - image[band] @ text.T
            positive, negative = relations.of(band)
            near = distance.square().masked_fill(~positive, 0).sum() / positives
            far = (margin - distance).clamp(min=0).square().masked_fill(~negative, 0).sum() / negatives
            return (near + far) / 2

    return sum_over_bands(slice(0, pairs) if rows is None else rows, pairs, of_band)
