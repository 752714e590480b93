"""Weights between models: interpolated between two (WiSE-FT), averaged over several (model soups)."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder


def merge(models: Sequence[DualEncoder], weights: Sequence[float] | None = None) -> DualEncoder:
    """The weighted mean of models of one architecture, in the layout of the last of them.

    Two models with the weights (1 - alpha, alpha) are Wortsman et al. 2022, "Robust fine-tuning of zero-shot models",
    equation 1; several with equal ones are their uniform soup ("Model soups", 2022). The scale is averaged as the
    logarithm that it is kept as.

    Args:
        models: at least two. The last one is overwritten.
        weights: one a model, summing to 1; equal ones where none are given.

    Returns:
        The last model, with its numbers replaced. What is no number to average (integer buffers) stays as it is there.

    Raises:
        ModelError: their architectures differ, by the name of the first tensor that does; or the weights do not fit.

    Example:
        >>> merge([load("org/clip"), load("runs/tuned")], [0.5, 0.5]).save("merged")   # doctest: +SKIP
    """
    weights = [1 / len(models)] * len(models) if weights is None else list(weights)
    if len(models) < 2 or len(weights) != len(models) or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ModelError(
            f"{len(models)} models and weights {weights}; take two models or more, and a weight for each, summing to 1"
        )
    last = models[-1]
    states = [_state(model) for model in models]
    for model, state in zip(models, states, strict=True):
        _refuse_another(last.name, states[-1], model.name, state)
    own = last.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in averaged(states, weights).items():
            own[name].copy_(value)
    return last


def averaged(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of tensors, in float32; what is no floating point is the last one's."""
    mean = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mean[name] = last
            continue
        # A weight of 0 leaves infinities out too, and a single 1 gives back the same bits.
        parts = [(state[name].float(), weight) for state, weight in zip(states, weights, strict=True) if weight]
        total = parts[0][0] if parts[0][1] == 1 else parts[0][0] * parts[0][1]
        for part, weight in parts[1:]:
            total = total + part.to(total.device) * weight
        mean[name] = total.to(last.dtype)
    return mean


def _state(model: DualEncoder) -> dict[str, Tensor]:
    """Without the heads of views, which a model drops on save unless told otherwise."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("view_heads.")}


def _refuse_another(name: str, state: Mapping[str, Tensor], other: str, other_state: Mapping[str, Tensor]) -> None:
    def shape(of: Mapping[str, Tensor], tensor: str) -> str:
        return f"is {tuple(of[tensor].shape)} in" if tensor in of else "is not in"

    for tensor in (*state, *other_state):
        if shape(state, tensor) != shape(other_state, tensor):
            raise ModelError(
                f"{other} and {name} are of different architectures: {tensor} {shape(other_state, tensor)} the one, "
                f"{shape(state, tensor)} the other; bring both to one library with `clipkit export`"
            )
