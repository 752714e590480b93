"""Probabilities of texts for images, computed from cosine similarities."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from clipkit.errors import ModelError

Probabilities = Literal["auto", "sigmoid", "softmax"]


def probabilities(
    similarities: Float[Tensor, "N C"], scale: float, bias: float | None, kind: Probabilities = "auto"
) -> Float[Tensor, "N C"]:
    """Convert cosine similarities to the probability of each text for each image.

    Args:
        similarities: cosine similarities of N images and C texts.
        scale: exp(logit_scale) of the model.
        bias: logit bias of the model, or None.
        kind: kind of the probabilities:

            - `softmax` (CLIP): softmax(scale · cosine) over the texts.
            - `sigmoid` (SigLIP): sigmoid(scale · cosine + bias).
            - `auto`: `sigmoid` if the model has a logit bias, otherwise `softmax`.

    Raises:
        ModelError: `kind` is unknown, or it is `sigmoid` and the model has no logit bias.

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
