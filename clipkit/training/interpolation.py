"""Weights between those that a model came with and those that it learned (WiSE-FT, Wortsman et al. 2022)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipkit.models.merge import averaged

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Curve:
    """What was measured on the way."""

    rows: list[dict[str, float]]
    """For each alpha `alpha`, `target`, and `retention` where that is measured."""
    chosen: float
    """The alpha with the highest mean of the figures."""


def start_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies, off the device, of everything that may change while it learns."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = {name: value for name, value in model.state_dict().items() if name not in frozen}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def interpolated(
    model: nn.Module,
    start: Mapping[str, Tensor],
    figures: Callable[[], Mapping[str, float]],
    wanted: Mapping[str, str],
) -> Curve:
    """Measure the model at each alpha, and leave it at the best one.

    Args:
        model: as it is at the end.
        start: what `start_of` gave at the beginning.
        figures: measures the model as it is.
        wanted: name in the curve -> name among the figures.
    """
    end = {name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name in start}
    rows = []
    for alpha in ALPHAS:
        _set(model, start, end, alpha)
        found = figures()
        rows.append({"alpha": alpha, **{name: found[own] for name, own in wanted.items()}})
    # Of equals the one nearest to the end.
    best = max(rows, key=lambda row: (sum(row[name] for name in wanted), row["alpha"]))
    _set(model, start, end, best["alpha"])
    return Curve(rows, best["alpha"])


def _set(model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in averaged([start, end], [1 - alpha, alpha]).items():
            own[name].copy_(value)
