"""Decoupled contrastive loss."""

from jaxtyping import Float, Int
from torch import Tensor

from clipkit.losses.joint import joint
from clipkit.losses.positives import Duplicates


def dcl(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    *,
    image_ids: Int[Tensor, " G"] | None = None,
    caption_ids: Int[Tensor, " G"] | None = None,
    duplicates: Duplicates = "positive",
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the decoupled contrastive loss: NT-Xent without the positives in the denominator.

    .. math:: L = \frac{1}{2G} \sum_a \Big[ \mathrm{lse}_{b \in N_a}(s\,z_a \cdot z_b)
        - \frac{s}{|P_a|} \sum_{p \in P_a} z_a \cdot z_p \Big]

    The equation is from Yeh et al. 2022, "Decoupled Contrastive Learning". The 2G anchors z are all image and text
    features. P_a are the positives of anchor a, N_a are its negatives, s is the scale, and lse is log Σ exp. Unlike in
    NT-Xent, the gradient of the negatives does not vanish if a positive is very similar. The loss can be negative. An
    anchor without a negative adds 0.

    Args:
        image_features: unit-length image features, one row per pair; or features of the first views.
        text_features: unit-length text features, in the same order; or features of the second views.
        scale: inverse temperature; 10 in the paper.
        image_ids: ID of each pair's image; equal IDs mean the same image. None: no duplicates.
        caption_ids: ID of each pair's caption.
        duplicates: how to treat other pairs with the same image or caption: "positive", "negative" or "ignore".
        rows: pairs whose terms are summed. Default: all pairs. The values of slices that partition the batch add up to
            the loss.

    Returns:
        The sum of the terms of the image and text anchors of the pairs in `rows`, divided by 2G.

    Raises:
        BatchError: no pair has a negative.
        ValueError: only one of `image_ids` and `caption_ids` is given.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> round(dcl(x, x, 0.0).item(), 4)
        1.7918
    """
    return joint(image_features, text_features, scale, image_ids, caption_ids, duplicates, rows, decoupled=True)
