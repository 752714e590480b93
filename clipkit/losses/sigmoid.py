"""Sigmoid loss of SigLIP."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses.positives import Duplicates, other_pairs
from clipkit.losses.tiles import tiled_softplus_sum


def sigmoid(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    *,
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    duplicates: Duplicates = "positive",
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Classify each of the G² image-text combinations independently as matching or not matching.

    .. math:: L = -\frac{1}{G} \sum_{ij} \ln \sigma\big(z_{ij} (s\,x_i \cdot y_j + b)\big), \quad z_{ij} = \pm 1

    z_ij is 1 if pairs i and j have the same image or caption, otherwise −1. If s = b = 0, the loss is G ln 2. The
    source is Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2. The loss is a sum over
    combinations, divided by the number of pairs.

    The loss is computed in tiles, so memory grows with G, not with G². The precision is float32, or float64 for float64
    features.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        scale: exp(logit_scale); 10 at the start of SigLIP's training.
        bias: the logit bias; -10 at the start of SigLIP's training.
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption; give both kinds of IDs or neither.
        duplicates: how to treat other pairs with the same image or caption: "positive", "negative" or "ignore".
        rows: images whose terms with all texts are summed. Default: all images. The values of slices that partition the
            batch add up to the loss.

    Returns:
        The sum of the terms of the images in `rows`, divided by G.

    Example:
        >>> x = torch.eye(2)
        >>> round(sigmoid(x, x, 0.0, 0.0).item(), 4)
        1.3863
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    bias = torch.as_tensor(bias, dtype=dtype, device=image.device)
    pairs = len(image)
    counted = slice(0, pairs) if rows is None else rows
    positives, masked = other_pairs(image_ids, caption_ids, duplicates, counted)
    every = tiled_softplus_sum(image[counted], text, scale, bias, masked)
    # With u = s x · y + b, a positive adds -ln σ(u) = softplus(u) - u, and a negative adds softplus(u).
    if positives is None:
        matched = (image[counted] * text[counted]).sum() * scale + bias * len(image[counted])
    else:
        matched = (image[counted] * positives.sums(text)[counted]).sum() * scale + bias * positives.count[counted].sum()
    return (every - matched) / pairs
