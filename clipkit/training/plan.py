"""Plan of a run: all parts that the recipe determines, built and checked before any file is written."""

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
from clipkit.data.sampler import EpochSampler
from clipkit.data.stream import StreamSampler
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
from clipkit.training.optimizer import WarmupCosine, build_optimizer, warmup_steps
from clipkit.training.rates import kind_of
from clipkit.training.run_data import RunData, read_data

# CLIP clips the scale at 100 "to prevent training instability" (Radford et al. 2021, 2.5).
_LARGEST_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Plan:
    """Parts of a run; they stay the same objects during the whole run."""

    recipe: Recipe
    began: float
    """`time.monotonic()` when the run started."""
    accelerator: Accelerator
    processes: Processes
    data: RunData
    sampler: EpochSampler | StreamSampler
    schedule: WarmupCosine
    """Learning rate of the main group of weights."""
    peaks: tuple[float, ...]
    """Peak learning rate of each group of the optimizer, the main one first."""
    model: DualEncoder
    objective: Objective
    optimizer: AcceleratedOptimizer
    learned: Learned
    layout: Layout
    """Origin of the model, for its card."""
    start: dict[str, Tensor]
    """Initial weights if the recipe interpolates between them and the trained ones; otherwise empty."""
    largest_logit_scale: float | None
    """Upper limit of the logarithmic scale; None: not limited."""
    identity: dict[str, Any]
    """Everything except the recipe that determines the result, by name; it must be the same in a resumed run."""

    @cached_property
    def calendar(self) -> Calendar:
        """Steps at which the run logs, evaluates and saves."""
        recipe, steps_per_epoch = self.recipe, self.sampler.steps_per_epoch
        steps = recipe.train.epochs * steps_per_epoch
        return Calendar(
            steps, steps_per_epoch, recipe.train.log_every, recipe.eval.every_epochs, recipe.checkpoint.every_steps
        )

    @property
    def steps(self) -> int:
        """Number of updates in the whole run."""
        return self.calendar.steps

    @property
    def precision(self) -> str:
        """Precision of the forward pass: fp32, bf16 or fp16."""
        return self.accelerator.mixed_precision.replace("no", "fp32")


def make_plan(recipe: Recipe, accelerator: Accelerator | None = None) -> Plan:
    """Read the data, load the model and build the parts of a run. Nothing is written.

    Args:
        recipe: the recipe of the run.
        accelerator: mixed precision and the processes of the run; by default, those of the recipe.

    Raises:
        UserError: the recipe, the data or the model is invalid or unsupported.

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
    pairs = data.train.pairs
    sampler = data.train.sampler(recipe.data.captions, recipe.train.batch_size, recipe.train.seed)
    steps = recipe.train.epochs * sampler.steps_per_epoch
    warmup_steps(recipe.optim.warmup, steps)  # raise an error about a warmup that is too long before a model is loaded
    torch.manual_seed(recipe.train.seed)  # every process initializes new layers with the same weights
    model = model_of(recipe).to(accelerator.device)
    # With the sigmoid loss, the scale may rise above CLIP's limit.
    limited = Need.BIAS not in recipe.needs
    largest_logit_scale = max(_LARGEST_LOGIT_SCALE, model.logit_scale.item()) if limited else None
    layout = model.layout(recipe.model)
    start = start_of(model) if recipe.eval.interpolate else {}
    optimizer = accelerator.prepare(build_optimizer(model, recipe.optim, lambda name: kind_of(name, recipe)))
    peaks = tuple(group["lr"] for group in optimizer.param_groups)
    learned = Learned(model, optimizer.optimizer, recipe.train.ema)
    names = [loss.teacher for term in recipe.terms for loss in term.losses if loss.teacher is not None]
    teachers = teachers_of(names, pairs, processes)
    return Plan(
        recipe=recipe,
        began=began,
        accelerator=accelerator,
        processes=processes,
        data=data,
        sampler=sampler,
        schedule=WarmupCosine(peaks[0], recipe.optim.warmup, steps),
        peaks=peaks,
        model=model,
        objective=objective_of(recipe, model, pairs, teachers),
        optimizer=optimizer,
        learned=learned,
        layout=layout,
        start=start,
        largest_logit_scale=largest_logit_scale,
        identity=identity_of(recipe, data, model, teachers, processes, accelerator),
    )
