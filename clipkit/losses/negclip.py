"""InfoNCE with hard negative captions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses.infonce import infonce
from clipkit.losses.positives import Duplicates, other_pairs
from clipkit.losses.tiles import tiled_row_logsumexp


def negclip(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    negative_text_features: Float[Tensor, "H D"],
    scale: Float[Tensor, ""] | float,
    *,
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    duplicates: Duplicates = "positive",
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Compute InfoNCE with hard negatives: each image is also contrasted with altered captions.

    .. math:: L = L_{InfoNCE} + \frac{1}{2G} \sum_i \Big[ \mathrm{lse}\big(\mathrm{lse}_j(s\,x_i \cdot y_j),
        \mathrm{lse}_h(s\,x_i \cdot n_h)\big) - \mathrm{lse}_j(s\,x_i \cdot y_j) \Big]

    The method is from Yuksekgonul et al. 2023, "When and Why Vision-Language Models Behave like Bags-of-Words", section
    4. n_h are the features of the hard negative captions, and lse is log Σ exp. Every image is contrasted with all hard
    negative captions of the batch. Hard negative captions are never queries, because no image belongs to them.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        negative_text_features: unit-length features of the H altered captions of the batch, in any order.
        scale: exp(logit_scale).
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat other pairs with the same image or caption: "positive", "negative" or "ignore".
        rows: pairs whose terms are summed. Default: all pairs. The values of slices that partition the batch add up to
            the loss.

    Returns:
        The sum of the terms of the pairs in `rows`, divided by 2G.

    Raises:
        ValueError: only one of `image_ids` and `caption_ids` is given.

    Example:
        >>> x = torch.eye(4)
        >>> round(negclip(x, x, x[:2], 0.0).item(), 4)
        1.589
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text, wrong = (features.to(dtype) for features in (image_features, text_features, negative_text_features))
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    pairs = len(image)
    counted = slice(0, pairs) if rows is None else rows
    plain = infonce(
        image, text, scale, image_ids=image_ids, caption_ids=caption_ids, duplicates=duplicates, rows=counted
    )
    _, left_out = other_pairs(image_ids, caption_ids, duplicates, counted)
    over_texts = tiled_row_logsumexp(image[counted], text, scale, left_out)
    over_wrong = tiled_row_logsumexp(image[counted], wrong, scale)
    return plain + (torch.logaddexp(over_texts, over_wrong) - over_texts).sum() / (2 * pairs)
