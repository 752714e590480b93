"""Interpolation between the initial and the trained weights (WiSE-FT, Wortsman et al. 2022)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from clipkit.models.merge import averaged

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def start_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of all weights and buffers that training may change."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = {name: value for name, value in model.state_dict().items() if name not in frozen}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def interpolated(
    model: nn.Module, start: Mapping[str, Tensor], figures: Callable[[], Mapping[str, float]], names: Mapping[str, str]
) -> tuple[list[dict[str, float]], float]:
    """Evaluate the model at each alpha, and set it to the weights of the best alpha.

    Args:
        model: the model with the trained weights.
        start: the initial weights, from `start_of`.
        figures: function that evaluates the model with its current weights.
        names: mapping from names in the curve to names of metrics.

    Returns:
        One row per alpha (`alpha`, and the values by the names of the curve), and the best alpha: the one with the
        highest mean. The model has its weights.
    """
    end = {name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name in start}
    rows = []
    for alpha in ALPHAS:
        _set(model, start, end, alpha)
        values = figures()
        rows.append({"alpha": alpha, **{name: values[figure] for name, figure in names.items()}})
    # Ties go to the alpha nearest to the trained weights.
    best = max(rows, key=lambda row: (sum(row[name] for name in names), row["alpha"]))
    _set(model, start, end, best["alpha"])
    return rows, best["alpha"]


def _set(model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
    weights = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in averaged([start, end], [1 - alpha, alpha]).items():
            weights[name].copy_(value)
