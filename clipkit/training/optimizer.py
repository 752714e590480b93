"""Optimizer with its parameter groups, and the learning rate schedule."""

import math

import torch
from torch import nn

from clipkit.errors import RecipeError
from clipkit.recipe import OptimRecipe

# Learned positions and class tokens are not matrices of a linear map: weight decay would only pull them to zero.
_NO_DECAY = ("position_embedding", "positional_embedding", "pos_embed", "class_embedding", "cls_token", "logit_")


def build_optimizer(model: nn.Module, recipe: OptimRecipe) -> torch.optim.Optimizer:
    """Build the optimizer of the trainable parameters.

    Weight decay applies to matrices only, not to biases, norms, positions and the scale.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            excluded = parameter.ndim < 2 or any(part in name for part in _NO_DECAY)
            (no_decay if excluded else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr)
    # One kernel for all parameters; on a CPU the default, whose bits differ.
    fused = True if any(parameter.is_cuda for parameter in (*decay, *no_decay)) else None
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)


class WarmupCosine:
    """Linear warmup to the peak, then half a cosine to zero. It depends on the step alone: checkpoints need no state.

    Args:
        peak: learning rate at the end of warmup.
        warmup: below 1 a share of the run, otherwise a number of steps.
        steps: updates in the whole run.

    Raises:
        RecipeError: the warmup is longer than the run.

    Example:
        >>> schedule = WarmupCosine(peak=1.0, warmup=2, steps=4)
        >>> [round(schedule(step), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """

    def __init__(self, peak: float, warmup: float, steps: int) -> None:
        self.peak = peak
        self.steps = steps
        self.warmup_steps = round(warmup * steps) if warmup < 1 else int(warmup)
        if self.warmup_steps > steps:
            raise RecipeError(
                f"optim.warmup is {self.warmup_steps} steps, but the run has {steps}; "
                "give fewer steps or a share of the run, for example 0.1"
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate of update number `step`, counted from 0."""
        rise = self.warmup_steps
        if step < rise:
            return self.peak * (step + 1) / rise
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (self.steps - rise)))
