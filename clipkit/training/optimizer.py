"""Optimizer with its parameter groups, and the learning rate schedule."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from clipkit.errors import RecipeError
from clipkit.recipe import OptimRecipe
from clipkit.training.rates import KINDS, Kind

# Learned positions and class tokens are not matrices of a linear map: weight decay would only pull them to zero.
_NO_DECAY = ("position_embedding", "positional_embedding", "pos_embed", "class_embedding", "cls_token", "logit_")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    recipe: OptimRecipe,
    kind_of: Callable[[str], Kind],
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer, with separate parameter groups for each peak learning rate.

    The first group has the main learning rate. Weight decay applies only to matrices, not to biases, norms, positions
    and the scale.

    Args:
        recipe: settings of the optimizer.
        kind_of: function that returns the kind of a parameter (adapter, pretrained or new) from its name.
        factors: learning rate factor of each parameter by name; None: all 1.
    """
    kinds = {name: kind_of(name) for name in parameters}
    factor = {name: 1.0 if factors is None else factors[name] for name in parameters}
    rates = {name: getattr(recipe.rates, kinds[name]) * factor[name] for name in kinds}
    order = sorted(rates, key=lambda name: (KINDS.index(kinds[name]), -factor[name]))
    peaks = dict.fromkeys(rates[name] for name in order)
    groups = []
    for peak in peaks:
        decay: list[nn.Parameter] = []
        no_decay: list[nn.Parameter] = []
        for name, parameter in parameters.items():
            if rates[name] == peak:
                excluded = parameter.ndim < 2 or any(part in name for part in _NO_DECAY)
                (no_decay if excluded else decay).append(parameter)
        groups.append({"params": decay, "lr": peak, "weight_decay": recipe.weight_decay})
        groups.append({"params": no_decay, "lr": peak, "weight_decay": 0.0})
    if recipe.name == "sgd":
        return torch.optim.SGD(groups)
    # One kernel for all parameters; on a CPU the default, whose bits differ.
    fused = True if any(parameter.is_cuda for parameter in parameters.values()) else None
    return torch.optim.AdamW(groups, betas=recipe.betas, eps=recipe.eps, fused=fused)


def warmup_steps(warmup: float, steps: int, held: int = 0) -> int:
    """Return the number of warmup steps.

    Args:
        warmup: number of warmup steps or, if below 1, a share of the steps after the first `held` steps.
        held: number of steps before warmup, in which the learning rate is 0.

    Raises:
        RecipeError: the held steps or the warmup are longer than the run.
    """
    if held >= steps:
        raise RecipeError(
            f"optim.warm_moments is {held} steps, but the run has only {steps}, so no weight would be "
            "trained; give fewer steps"
        )
    steps -= held
    rise = round(warmup * steps) if warmup < 1 else int(warmup)
    if rise > steps:
        raise RecipeError(
            f"optim.warmup is {rise} steps, but the run has only {steps} "
            f"steps{' after optim.warm_moments' * (held > 0)}; "
            "give fewer steps or a share of the run, for example 0.1"
        )
    return rise


class WarmupCosine:
    """Learning rate schedule without a state: linear warmup to the peak, then cosine decay to zero.

    Args:
        peak: learning rate at the end of warmup.
        warmup: number of warmup steps or, if below 1, a share of the steps after the first `held` steps.
        steps: number of steps in the whole run.
        held: number of steps before warmup. Their learning rate is 0, and the optimizer only estimates its moments.

    Raises:
        RecipeError: the held steps or the warmup are longer than the run.

    Example:
        >>> schedule = WarmupCosine(peak=1.0, warmup=2, steps=4)
        >>> [round(schedule(step), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """

    def __init__(self, peak: float, warmup: float, steps: int, held: int = 0) -> None:
        self.peak = peak
        self.held = held
        self.steps = steps - held
        self.warmup_steps = warmup_steps(warmup, steps, held)

    @property
    def first_at_peak(self) -> int:
        """First step after warmup, counted from 0. Its learning rate is the peak."""
        return self.held + self.warmup_steps

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.held:
            return 0.0
        step, rise = step - self.held, self.warmup_steps
        if step < rise:
            return self.peak * (step + 1) / rise
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (self.steps - rise)))
