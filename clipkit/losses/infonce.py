"""Symmetric InfoNCE, the loss of CLIP, for one or several positives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses import dense
from clipkit.losses.positives import Duplicates, Positives, other_pairs
from clipkit.losses.tiles import tiled_logsumexp, tiled_row_logsumexp


def infonce(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    *,
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    duplicates: Duplicates = "positive",
    label_smoothing: float = 0.0,
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Compute symmetric InfoNCE, the loss of CLIP, over the G pairs of a batch.

    .. math:: L = \frac{1}{2G} \sum_i \Big[ \mathrm{lse}_j(s\,x_i \cdot y_j) + \mathrm{lse}_j(s\,y_i \cdot x_j)
        - \frac{s}{|P_i|} \sum_{j \in P_i} (x_i \cdot y_j + y_i \cdot x_j) \Big]

    x are image features, y are text features, s is the scale, and lse is log Σ exp. P_i contains pair i and all pairs
    with the same image or the same caption as pair i. The loss is the cross entropy with targets that are spread evenly
    over P_i. If all similarities are equal, the loss is ln G. The source of the equation is Radford et al. 2021,
    "Learning Transferable Visual Models From Natural Language Supervision", figure 3, where P_i contains only pair i.

    With `label_smoothing` ε, the targets are (1 − ε) times the targets above, plus ε spread evenly over the batch
    (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).

    The loss is computed in tiles, so memory grows with G, not with G². The precision is float32, or float64 for float64
    features. On data center GPUs, each float32 number is split into two 16-bit numbers, with nearly the same accuracy.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        scale: exp(logit_scale), the inverse temperature, e.g. 14.3 for a temperature of 0.07; at most 100 in CLIP.
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat other pairs with the same image or caption: "positive", "negative" or "ignore". With
            "ignore", an image or text without any negative adds 0.
        label_smoothing: ε in [0, 1), e.g. 0.1 if some captions are wrong.
        rows: pairs whose terms are summed; each is compared with the whole batch. Default: all pairs. The values and
            gradients of disjoint slices that cover the batch add up to the loss, so processes can share the work.

    Returns:
        The sum of the terms of the pairs in `rows`, divided by G.

    Raises:
        ValueError: only one of `image_ids` and `caption_ids` is given.

    Example:
        >>> x = torch.eye(4)
        >>> round(infonce(x, x, 100.0).item(), 4), round(infonce(x, x, 0.0).item(), 4)
        (0.0, 1.3863)
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    pairs = len(image)
    counted = slice(0, pairs) if rows is None else rows
    positives, masked = other_pairs(image_ids, caption_ids, duplicates, counted)
    whole = counted == slice(0, pairs)
    if whole and positives is None and masked is None and not label_smoothing and dense.is_small(image):
        return dense.infonce(image, text, scale)
    if whole:
        over_texts, over_images = tiled_logsumexp(image, text, scale, masked)
    else:
        over_texts = tiled_row_logsumexp(image[counted], text, scale, masked)
        over_images = tiled_row_logsumexp(text[counted], image, scale, masked)
    if positives is None:
        matched = 2 * (image[counted] * text[counted]).sum(dim=1)
    else:
        matched = (image[counted] * positives.sums(text)[counted]).sum(dim=1)
        matched = matched + (text[counted] * positives.sums(image)[counted]).sum(dim=1)
        matched = matched / positives.count[counted]
    if label_smoothing:
        # Mean similarity to all texts (or images) that are not left out.
        if masked is None:
            every = (image[counted] * text.mean(dim=0) + text[counted] * image.mean(dim=0)).sum(dim=1)
        else:
            assert image_ids is not None
            assert caption_ids is not None
            groups = Positives(image_ids, caption_ids)
            left = (pairs - groups.count[counted] + 1).to(dtype)
            of_texts = text.sum(dim=0) - groups.sums(text)[counted] + text[counted]
            of_images = image.sum(dim=0) - groups.sums(image)[counted] + image[counted]
            every = ((image[counted] * of_texts).sum(dim=1) + (text[counted] * of_images).sum(dim=1)) / left
        matched = (1 - label_smoothing) * matched + label_smoothing * every
    return (over_texts + over_images - scale * matched).sum() / (2 * pairs)
