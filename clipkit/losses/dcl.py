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
    r"""Compute NT-Xent without the positives in the denominator.

    .. math:: L = \frac{1}{2G} \sum_a \Big[ \mathrm{lse}_{b \in N_a}(s\,z_a \cdot z_b)
        - \frac{s}{|P_a|} \sum_{p \in P_a} z_a \cdot z_p \Big]

    (Yeh et al. 2022, "Decoupled Contrastive Learning".) The anchors z are all image and text features; P_a are the
    positives of anchor a, N_a its negatives; lse is log Σ exp. In contrast to NT-Xent, negatives keep their gradient
    when a positive is very similar. The loss can be negative. An anchor without a negative adds 0.

    Args:
        image_features: unit length, one row per pair; or features of the first views.
        text_features: unit length; row i belongs to row i of the images; or features of the second views.
        scale: inverse temperature; 10 in the paper.
        image_ids: ID of each pair's image, if images may repeat.
        caption_ids: ID of each pair's caption, if captions may repeat; needs `image_ids` too.
        duplicates: treatment of other pairs with the same image or caption: positive, negative, or ignore (left out).
        rows: pairs whose terms are summed; default: all. If slices divide the batch, their values add up to the loss.

    Returns:
        The sum over the image and text anchors of the pairs in `rows`, divided by 2G.

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
