"""Update of the weights with the gradient of one batch."""

import math
from typing import Any

import torch
from accelerate import Accelerator

from clipkit.data import Batch
from clipkit.training.plan import Plan
from clipkit.training.state import State
from clipkit.training.step import Step
from clipkit.training.unfreeze import frozen_until


class NotFinite(Exception):
    """Exception for a loss, a gradient norm or updated weights that are not finite.

    Args:
        loss: the loss of the step.
        norm: the gradient norm of the step.
        updated: True if the update was applied, so that the weights of the previous step are lost.
    """

    def __init__(self, loss: float, norm: float, updated: bool = False) -> None:
        super().__init__(f"loss {loss:.4g}, gradient norm {norm:.4g}")
        self.loss = loss
        self.norm = norm
        self.updated = updated


def update(batch: Batch, gradients: Step, plan: Plan, state: State) -> dict[str, Any]:
    """Update the weights with the gradient of one batch.

    Args:
        batch: this process's rows.
        state: the state of the run; its step increases by one.

    Returns:
        This step's row of metrics.jsonl, without the batch statistics.

    Raises:
        Abandoned: a process received a stop signal; nothing has changed.
        NotFinite: the loss, the gradient norm or the updated weights are not finite. If `updated` is False, nothing has
            changed. If `updated` is True, the weights must not be saved.
    """
    recipe, model, accelerator = plan.recipe, plan.model, plan.accelerator
    lr = plan.schedule(state.step)
    for group, peak in zip(plan.optimizer.param_groups, plan.peaks, strict=True):
        group["lr"] = lr * (peak / plan.schedule.peak)
    # BatchNorm statistics change in the forward pass, even if the step fails.
    before = {} if gradients.may_split else {name: buffer.clone() for name, buffer in model.named_buffers()}
    with frozen_until(plan.first_steps, model, state.step):
        loss = gradients(batch, state.step)
    plan.weights.collect_gradients()
    pull = [] if plan.pull is None else [plan.pull.add_gradient(_gradient_scale(accelerator)).float()]
    norm = plan.weights.clip_gradients(accelerator, recipe.optim.clip or math.inf)
    value, length, *penalty = torch.stack([loss.float(), norm.float(), *pull]).tolist()  # waits for the device once
    # With fp16 the gradient scaler handles a gradient overflow: it skips the step and lowers its scale.
    if not math.isfinite(value) or (accelerator.scaler is None and not math.isfinite(length)):
        for name, buffer in model.named_buffers():
            buffer.copy_(before.get(name, buffer))
        raise NotFinite(value, length)
    plan.optimizer.step()
    plan.optimizer.zero_grad()
    # Check before the scale is limited: the limit would hide an infinite scale.
    if not plan.weights.are_finite():
        raise NotFinite(value, length, updated=True)
    if plan.largest_logit_scale is not None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=plan.largest_logit_scale)
    state.step += 1
    if plan.learned.average is not None:
        plan.learned.average.update(state.step)
    return {
        "step": state.step,
        "epoch": round(state.step / plan.sampler.steps_per_epoch, 4),
        "seen": state.step * recipe.train.batch_size,
        "loss": value,
        "lr": lr,
        **{f"lr_{kind}": lr * (rate / plan.schedule.peak) for kind, rate in plan.other_rates.items()},
        **({"pull": penalty[0]} if penalty else {}),
        **({"scale": model.logit_scale.exp().item()} if recipe.is_cross_modal else {}),
        **({"bias": model.logit_bias.item()} if model.logit_bias is not None else {}),
        "grad_norm": length,
    }


def _gradient_scale(accelerator: Accelerator) -> float:
    """Return the factor by which the gradients are scaled before they are clipped."""
    return 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())
