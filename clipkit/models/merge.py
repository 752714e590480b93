"""Averages of model weights: interpolation of two models (WiSE-FT), and soups of several models."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder


def merge(models: Sequence[DualEncoder], weights: Sequence[float] | None = None) -> DualEncoder:
    """Average the weights of models with the same architecture.

    For two models with the weights (1 - alpha, alpha), this is equation 1 of Wortsman et al. 2022, "Robust fine-tuning
    of zero-shot models". With equal weights, it is the uniform soup of Wortsman et al. 2022, "Model soups". The
    logarithms of the logit scales are averaged.

    Args:
        models: at least two models. The last model is overwritten.
        weights: one weight per model, with the sum 1. Default: equal weights.

    Returns:
        The last model, with averaged weights. Its integer buffers stay unchanged.

    Raises:
        ModelError: the architectures differ, or the weights are invalid.

    Example:
        >>> merge([load("org/clip"), load("runs/tuned")], [0.5, 0.5]).save("merged")   # doctest: +SKIP
    """
    weights = [1 / len(models)] * len(models) if weights is None else list(weights)
    if len(models) < 2 or len(weights) != len(models) or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ModelError(
            f"merge got {len(models)} model(s) and the weights {weights}; give two or more models, and "
            "one weight per model with the sum 1"
        )
    last = models[-1]
    states = [weights_of(model) for model in models]
    for model, state in zip(models, states, strict=True):
        check_same(last.name, states[-1], model.name, state)
    tensors = last.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in averaged(states, weights).items():
            tensors[name].copy_(value)
    return last


def averaged(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of each tensor, computed in float32.

    Integer tensors are copied from the last model.

    Args:
        states: state dict of each model.
        weights: weight of each model.
    """
    mean = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mean[name] = last
            continue
        # A weight of 0 also skips infinities, and a single weight of 1 returns the same bits.
        parts = [(state[name].float(), weight) for state, weight in zip(states, weights, strict=True) if weight]
        total = parts[0][0] if parts[0][1] == 1 else parts[0][0] * parts[0][1]
        for part, weight in parts[1:]:
            total = total + part.to(total.device) * weight
        mean[name] = total.to(last.dtype)
    return mean


def weights_of(model: DualEncoder) -> dict[str, Tensor]:
    """Return the state dict of a model, without its projection heads for losses that compare views."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("view_heads.")}


def check_same(name: str, state: Mapping[str, Tensor], other: str, other_state: Mapping[str, Tensor]) -> None:
    """Check that two state dicts have the same tensors with the same shapes.

    Args:
        name, other: names of the two models, for errors.
        state, other_state: state dicts of the two models.

    Raises:
        ModelError: a tensor is missing or has another shape.
    """

    def shape(of: Mapping[str, Tensor], tensor: str) -> str:
        return f"has shape {tuple(of[tensor].shape)} in" if tensor in of else "is not in"

    for tensor in (*state, *other_state):
        if shape(state, tensor) != shape(other_state, tensor):
            raise ModelError(
                f"{other} and {name} have different architectures: the tensor {tensor} {shape(other_state, tensor)} "
                f"{other} and {shape(state, tensor)} {name}; use models of one architecture, or convert both to the "
                "layout of one library with `clipkit export`"
            )
