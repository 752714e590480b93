"""The cross-modal consistency loss of CyCLIP."""

import torch
from jaxtyping import Float
from torch import Tensor


def cross_consistency(
    image_features: Float[Tensor, "G D"], text_features: Float[Tensor, "G D"], *, rows: slice | None = None
) -> Float[Tensor, ""]:
    r"""Make the similarity of image i and caption j equal to the similarity of image j and caption i.

    This loss alone makes all features collapse, so use it only together with another loss. CyCLIP adds this loss and
    `within_consistency` to InfoNCE, each with weight 0.25.

    .. math:: L = \frac{1}{G} \sum_{ij} (x_i \cdot y_j - x_j \cdot y_i)^2

    The equation is from Goel et al. 2022, "CyCLIP: Cyclic Contrastive Language-Image Pretraining", section 3. The time
    is O(G D²), because the sum is computed from D × D matrices instead of a G × G matrix. The loss is computed in
    float64.

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        rows: pairs whose terms are summed. Default: all pairs. The values of slices that partition the batch add up to
            the loss.

    Returns:
        The sum of the terms of the pairs in `rows`, divided by G.

    Example:
        >>> x = torch.eye(3)
        >>> cross_consistency(x, x).item()
        0.0
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    all_x, all_y = image_features.double(), text_features.double()
    counted = slice(0, len(all_x)) if rows is None else rows
    x, y = all_x[counted], all_y[counted]
    squares = (x.T @ x * (all_y.T @ all_y)).sum() + (y.T @ y * (all_x.T @ all_x)).sum()
    # Σ_ij (x_i · y_j)(x_j · y_i) = Σ_i x_i (Σ_j y_j x_jᵀ) y_i.
    mixed = ((x @ (all_y.T @ all_x)) * y).sum()
    return ((squares - 2 * mixed) / len(all_x)).to(dtype)
