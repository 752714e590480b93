"""Probabilities of texts for images, computed from cosine similarities."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from clipkit.errors import ModelError

Probabilities = Literal["auto", "sigmoid", "softmax"]


def probabilities(
    similarities: Float[Tensor, "N C"], scale: float, bias: float | None, kind: Probabilities = "auto"
) -> Float[Tensor, "N C"]:
    """Convert cosine similarities of N images and C texts to the probability of each text.

    Args:
        similarities: cosines.
        scale: exp(logit_scale) of the model.
        bias: logit bias of a model trained with the sigmoid loss, or None.
        kind: softmax: softmax(scale · cosine) over the texts, which sums to 1 for each image; sigmoid: sigmoid(scale ·
            cosine + bias) of each text independently of the others; auto: sigmoid if the model has a bias, else
            softmax.

    Raises:
        ModelError: sigmoid for a model without a bias, or an unknown kind.

    Example:
        >>> import torch
        >>> probabilities(torch.tensor([[0.5, 0.5]]), scale=10, bias=None)
        tensor([[0.5000, 0.5000]])
        >>> probabilities(torch.tensor([[0.5, 0.5]]), scale=10, bias=-5)
        tensor([[0.5000, 0.5000]])
    """
    if kind == "auto":
        kind = "softmax" if bias is None else "sigmoid"
    if kind == "softmax":
        return (similarities * scale).softmax(dim=-1)
    if kind != "sigmoid":
        raise ModelError(f"probabilities {kind!r}: is not supported; use auto, sigmoid or softmax")
    if bias is None:
        raise ModelError(
            "probabilities 'sigmoid': needs a model with a logit bias, such as SigLIP; use softmax or auto"
        )
    return (similarities * scale + bias).sigmoid()
