"""Supervised contrastive loss."""

from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses.joint import joint


def supcon(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    *,
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Treat all image and text features of a class as positives of each other.

    .. math:: L = \frac{1}{2G} \sum_a \frac{-1}{|P_a|} \sum_{p \in P_a}
        \ln \frac{\exp(s\,z_a \cdot z_p)}{\sum_{b \neq a} \exp(s\,z_a \cdot z_b)}

    The equation is from Khosla et al. 2020, "Supervised Contrastive Learning", equation 2, L_out. The 2G anchors z are
    all image and text features. P_a are the positives of anchor a, and s is the scale. Pairs with the same image or
    caption belong to the same class, e.g. if captions are made from class names. To use labels, pass the labels both as
    `image_ids` and as `caption_ids`.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        scale: inverse temperature; 10 in the paper.
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption.
        rows: pairs whose terms are summed. Default: all pairs. The values of slices that partition the batch add up to
            the loss.

    Returns:
        The sum of the terms of the image and text anchors of the pairs in `rows`, divided by 2G.

    Raises:
        BatchError: no pair has a negative.
        ValueError: only one of `image_ids` and `caption_ids` is given.

    Example:
        >>> import torch
        >>> x, classes = torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
        >>> round(supcon(x, x, 50.0, image_ids=classes, caption_ids=classes).item(), 4)
        1.0986
    """
    return joint(image_features, text_features, scale, image_ids, caption_ids, "positive", rows, decoupled=False)
