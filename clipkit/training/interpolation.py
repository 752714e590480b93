"""Interpolation between the initial and the trained weights (WiSE-FT, Wortsman et al. 2022)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from clipkit.models.adapters.attach import interpolate_adapters, is_of_adapter
from clipkit.models.merge import averaged

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ROUNDING = 1e-9
"""Tolerance of the comparison with `max_forgetting`, because 0.56 - 0.55 is slightly more than 0.01 in floats."""


def alphas_of(interpolate: bool | int) -> tuple[float, ...]:
    """Return interpolation weights (alphas) for `eval.interpolate`, evenly spaced from 0 to 1.

    Args:
        interpolate: number of alphas; True gives five.

    Example:
        >>> alphas_of(3)
        (0.0, 0.5, 1.0)
    """
    return ALPHAS if interpolate is True else tuple(index / (interpolate - 1) for index in range(interpolate))


def best_row(rows: Sequence[Mapping[str, float]], max_forgetting: float | None) -> Mapping[str, float]:
    """Return the row of the interpolation curve with the best weights.

    Args:
        rows: one row for each alpha, beginning with alpha 0. A row has `alpha`, `target` (the metric on the validation
            data) and, if measured, `retention`.
        max_forgetting: largest allowed loss of retention from alpha 0. The best row has the highest target within this
            limit. None: the best row has the highest mean of target and retention.

    Returns:
        The best row; ties go to the highest alpha.
    """
    if max_forgetting is None:
        return max(rows, key=lambda row: (row["target"] + row.get("retention", 0.0), row["alpha"]))
    least = rows[0]["retention"] - max_forgetting - _ROUNDING
    return max((row for row in rows if row["retention"] >= least), key=lambda row: (row["target"], row["alpha"]))


def start_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of all weights and buffers that training may change."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = {name: value for name, value in model.state_dict().items() if name not in frozen}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def interpolated(
    model: nn.Module,
    start: Mapping[str, Tensor],
    figures: Callable[[], Mapping[str, float]],
    names: Mapping[str, str],
    alphas: Sequence[float] = ALPHAS,
    max_forgetting: float | None = None,
) -> tuple[list[dict[str, float]], float]:
    """Evaluate the interpolated weights for each alpha, and set the model to the best of them.

    Args:
        model: the model with the trained weights.
        start: the initial weights, from `start_of`.
        figures: function that evaluates the model with its current weights and returns metrics by name.
        names: name of the metric for each column of the curve: `target` and, if measured, `retention`.
        alphas: interpolation weights; 0 gives the initial weights and 1 the trained weights.
        max_forgetting: largest allowed loss of retention, as for `best_row`.

    Returns:
        The interpolation curve, with one row for each alpha as in `best_row`, and the best alpha.
    """
    end = {name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name in start}
    rows = []
    for alpha in alphas:
        _set(model, start, end, alpha)
        values = figures()
        rows.append({"alpha": alpha, **{name: values[figure] for name, figure in names.items()}})
    alpha = best_row(rows, max_forgetting)["alpha"]
    _set(model, start, end, alpha)
    return rows, alpha


def _set(model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
    weights = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in averaged([start, end], [1 - alpha, alpha]).items():
            weights[name].copy_(end[name] if is_of_adapter(name) else value)
    if alpha < 1:
        interpolate_adapters(model, alpha)
