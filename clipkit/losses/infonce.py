"""Symmetric InfoNCE, the objective of CLIP."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def infonce(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    *,
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Symmetric InfoNCE over the G pairs of a global batch.

    .. math:: L = \frac{1}{2G} \sum_i \big[ \mathrm{lse}_j(s\,x_i \cdot y_j) + \mathrm{lse}_j(s\,y_i \cdot x_j)
        - 2 s\,x_i \cdot y_i \big]

    (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3.) At equal
    similarities the loss is ln G, its chance level. Computed in float32, or float64 where the features are float64.

    Args:
        image_features: unit length, one row a pair.
        text_features: unit length, row i belongs to row i of the images.
        scale: exp(logit_scale), the inverse temperature; 14.3 for a temperature of 0.07, at most 100 in CLIP.
        rows: the rows whose terms are counted, against all columns. Over slices that cover 0..G the values sum to
            the whole loss, and so do the gradients: this is how processes share the work.

    Returns:
        The sum over the counted rows, divided by G.

    Example:
        >>> x = F.normalize(torch.eye(4), dim=-1)
        >>> round(infonce(x, x, 100.0).item(), 4), round(infonce(x, x, 0.0).item(), 4)
        (0.0, 1.3863)
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    pairs = len(image)
    rows = slice(0, pairs) if rows is None else rows
    labels = torch.arange(pairs, device=image.device)[rows]
    with torch.autocast(image.device.type, enabled=False):
        logits_per_image = scale * image[rows] @ text.T
        logits_per_text = scale * text[rows] @ image.T
        over_images = F.cross_entropy(logits_per_image, labels, reduction="sum")
        over_texts = F.cross_entropy(logits_per_text, labels, reduction="sum")
    return (over_images + over_texts) / (2 * pairs)
