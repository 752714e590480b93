"""The plan of a run: everything that the recipe decides, built and checked before anything is written."""

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from clipkit.catalogue import Need
from clipkit.data import EpochSampler, StreamPairs, StreamSampler
from clipkit.models import DualEncoder
from clipkit.models.publish.layout import Layout
from clipkit.processes import Processes, accelerator_of
from clipkit.recipe import Recipe
from clipkit.training.calendar import Calendar
from clipkit.training.folder.learned import Learned
from clipkit.training.folder.trackers import check_installed
from clipkit.training.identity import identity_of
from clipkit.training.interpolation import start_of
from clipkit.training.model import model_of
from clipkit.training.objectives import objective_of
from clipkit.training.objectives.objective import Objective
from clipkit.training.objectives.teacher import teachers_of
from clipkit.training.optimizer import WarmupCosine, build_optimizer
from clipkit.training.run_data import RunData, read_data

# CLIP clips the scale at 100 "to prevent training instability" (Radford et al. 2021, 2.5).
_LARGEST_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Plan:
    """The parts of a run; they stay the same objects for its whole length."""

    recipe: Recipe
    began: float
    """`time.monotonic()` when the plan was begun."""
    accelerator: Accelerator
    processes: Processes
    data: RunData
    sampler: EpochSampler | StreamSampler
    schedule: WarmupCosine
    model: DualEncoder
    objective: Objective
    optimizer: AcceleratedOptimizer
    learned: Learned
    layout: Layout
    """Where the model came from, for its card."""
    start: dict[str, Tensor]
    """The weights before the first step, where the recipe interpolates between them and the last ones."""
    largest_logit_scale: float | None
    """Upper limit of the logarithmic scale; None: not limited."""
    identity: dict[str, Any]
    """Everything beside the recipe that determines the result, by name; a resumed run must have the same."""

    @cached_property
    def calendar(self) -> Calendar:
        """When the run logs, evaluates and saves."""
        recipe, steps_per_epoch = self.recipe, self.sampler.steps_per_epoch
        steps = recipe.train.epochs * steps_per_epoch
        return Calendar(
            steps, steps_per_epoch, recipe.train.log_every, recipe.eval.every_epochs, recipe.checkpoint.every_steps
        )

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.calendar.steps

    @property
    def precision(self) -> str:
        """Precision of the forward pass: fp32, bf16 or fp16."""
        return self.accelerator.mixed_precision.replace("no", "fp32")


def make_plan(recipe: Recipe, accelerator: Accelerator | None = None) -> Plan:
    """Read the data, load the model and build what a run needs. Nothing is written.

    Args:
        recipe: the recipe of the run.
        accelerator: mixed precision and the processes that take part; by default what the recipe asks for.

    Raises:
        UserError: the recipe, the data or the model cannot be used as they are.

    Example:
        >>> plan = make_plan(Recipe.from_yaml("recipes/finetune_clip.yaml"))    # doctest: +SKIP
        >>> plan.steps                                                          # doctest: +SKIP
        590
    """
    began = time.monotonic()
    check_installed(recipe.train.log_with)
    accelerator = accelerator or accelerator_of(recipe.train.precision, recipe.train.timeout_minutes)
    processes = Processes(accelerator)
    data = read_data(recipe, processes)
    sampler = (
        StreamSampler(data.train, recipe.train.batch_size)
        if isinstance(data.train, StreamPairs)
        else EpochSampler(data.train, recipe.data.captions, recipe.train.batch_size, recipe.train.seed)
    )
    schedule = WarmupCosine(recipe.optim.lr, recipe.optim.warmup, recipe.train.epochs * sampler.steps_per_epoch)
    torch.manual_seed(recipe.train.seed)  # new parts of a model are the same on every process
    model = model_of(recipe).to(accelerator.device)
    limited = Need.BIAS not in recipe.needs  # SigLIP's scale may exceed CLIP's largest
    largest_logit_scale = max(_LARGEST_LOGIT_SCALE, model.logit_scale.item()) if limited else None
    layout = model.layout(recipe.model)
    start = start_of(model) if recipe.eval.interpolate else {}
    optimizer = accelerator.prepare(build_optimizer(model, recipe.optim))
    learned = Learned(model, optimizer.optimizer, recipe.train.ema)
    names = [loss.teacher for term in recipe.terms for loss in term.losses if loss.teacher is not None]
    teachers = teachers_of(names, data.train, processes)
    return Plan(
        recipe=recipe,
        began=began,
        accelerator=accelerator,
        processes=processes,
        data=data,
        sampler=sampler,
        schedule=schedule,
        model=model,
        objective=objective_of(recipe, model, data.train, teachers),
        optimizer=optimizer,
        learned=learned,
        layout=layout,
        start=start,
        largest_logit_scale=largest_logit_scale,
        identity=identity_of(recipe, data, model, teachers, processes, accelerator),
    )
