"""Plan of a run: all parts that the recipe determines, built and checked before any file is written."""

import math
import time
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from clipkit.catalogue import Need
from clipkit.data.sampler import EpochSampler
from clipkit.data.stream import StreamSampler
from clipkit.errors import RecipeError
from clipkit.extras import check_extra
from clipkit.models import DualEncoder
from clipkit.models.publish.layout import Layout
from clipkit.processes import Processes, accelerator_of
from clipkit.recipe import Recipe
from clipkit.training.calendar import Calendar
from clipkit.training.depth import layer_factors
from clipkit.training.folder.learned import Learned
from clipkit.training.folder.trackers import check_installed
from clipkit.training.given import Given
from clipkit.training.identity import identity_of
from clipkit.training.interpolation import start_of
from clipkit.training.model import model_of
from clipkit.training.objectives import objective_of
from clipkit.training.objectives.objective import Objective
from clipkit.training.objectives.teacher import teachers_of
from clipkit.training.optimizer import WarmupCosine, build_optimizer, warmup_steps
from clipkit.training.pull import Pull
from clipkit.training.rates import Kind, kind_of, trained_rates
from clipkit.training.run_data import RunData, read_data
from clipkit.training.selection import selected
from clipkit.training.shards import Shards, is_sharded
from clipkit.training.unfreeze import first_steps
from clipkit.training.weights import Weights

# CLIP clips the scale at 100 "to prevent training instability" (Radford et al. 2021, 2.5).
_LARGEST_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Plan:
    """Model, data, objective, optimizer and all other objects of a run; none of them is replaced during the run."""

    recipe: Recipe
    began: float
    """`time.monotonic()` when the run started."""
    accelerator: Accelerator
    processes: Processes
    data: RunData
    sampler: EpochSampler | StreamSampler
    schedule: WarmupCosine
    """Learning rate of the main kind of weights."""
    peaks: tuple[float, ...]
    """Peak learning rate of each group of the optimizer, the main one first."""
    rates: dict[Kind, float]
    """Peak learning rates of the kinds of weights that are trained, the main one first."""
    first_steps: dict[str, int]
    """Step in which a parameter starts to learn, by name, for those that start later than the first one."""
    pull: Pull | None
    """Regularization that pulls pretrained weights toward their initial values."""
    model: DualEncoder
    weights: Weights
    """Trained weights of the model: whole, or distributed over the processes."""
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
    given: Given
    """Objects of a Python program that replace keys of the recipe."""

    @cached_property
    def calendar(self) -> Calendar:
        """Steps at which the run logs, evaluates and saves."""
        recipe, steps_per_epoch = self.recipe, self.sampler.steps_per_epoch
        steps = recipe.train.epochs * steps_per_epoch
        return Calendar(
            steps, steps_per_epoch, recipe.train.log_every, recipe.eval.every_epochs, recipe.checkpoint.every_steps
        )

    @cached_property
    def other_rates(self) -> dict[Kind, float]:
        """Peak learning rates that differ from the main one, by kind of weights: adapter, pretrained or new."""
        return {kind: rate for kind, rate in self.rates.items() if rate != self.schedule.peak}

    @property
    def steps(self) -> int:
        """Number of updates in the whole run."""
        return self.calendar.steps

    @property
    def precision(self) -> str:
        """Precision of the forward pass: fp32, bf16 or fp16."""
        return self.accelerator.mixed_precision.replace("no", "fp32")


def make_plan(recipe: Recipe, accelerator: Accelerator | None = None, given: Given | None = None) -> Plan:
    """Read the data, load the model and build the parts of a run. Nothing is written.

    Args:
        accelerator: provides mixed precision and the processes of the run; None: created from the recipe.
        given: Python objects that replace keys of the recipe.

    Raises:
        UserError: the recipe, the data or the model is invalid or unsupported.

    Example:
        >>> plan = make_plan(Recipe.from_yaml("recipes/finetune_clip.yaml"))    # doctest: +SKIP
        >>> plan.steps                                                          # doctest: +SKIP
        590
    """
    began = time.monotonic()
    check_installed(recipe.train.log_with)
    if recipe.data.validation is not None and not all(term.is_cross_modal for term in recipe.terms):
        check_extra("report", ["sklearn"], RecipeError)  # for the map in the report
    accelerator = accelerator or accelerator_of(recipe.train.precision, recipe.train.timeout_minutes)
    processes, given = Processes(accelerator), given or Given()
    data = read_data(recipe, processes, given)
    pairs = data.train.pairs
    captions = recipe.captions(labeled=pairs.classes is not None)
    sampler = data.train.sampler(captions, recipe.train.batch_size, recipe.train.seed)
    steps = recipe.train.epochs * sampler.steps_per_epoch
    held = recipe.optim.warm_moments or 0
    warmup_steps(recipe.optim.warmup, steps, held)  # a warmup that is too long is refused before a model is loaded
    sharded = is_sharded(recipe, processes, accelerator.mixed_precision)
    torch.manual_seed(recipe.train.seed)  # every process initializes new layers with the same weights
    model = model_of(recipe, given.model)
    if not sharded:
        model = model.to(accelerator.device)
    chosen, hard = selected(recipe, data, model, processes)
    if chosen is not data:
        data = chosen
        pairs = data.train.pairs
        sampler = EpochSampler(pairs, captions, recipe.train.batch_size, recipe.train.seed, hard)
        steps = recipe.train.epochs * sampler.steps_per_epoch
    # With the sigmoid loss, the scale may rise above CLIP's limit.
    limited = Need.BIAS not in recipe.needs
    largest_logit_scale = max(_LARGEST_LOGIT_SCALE, model.logit_scale.item()) if limited else None
    layout = model.layout(recipe.model)
    start = start_of(model) if recipe.eval.interpolate else {}
    decay, pull_weight = recipe.optim.layer_decay, recipe.optim.pull_to_start
    factors = None if decay is None else layer_factors(model, decay)
    kind = partial(kind_of, recipe=recipe)
    pull = None if pull_weight is None else Pull(model, pull_weight, kind)
    unfrozen_from = first_steps(model, recipe.optim.unfreeze, steps)
    teachers = teachers_of([name for term in recipe.terms for name in term.teachers], pairs, processes)
    identity = identity_of(recipe, data, model, teachers, pull, processes, accelerator, given)
    identity["the hard negatives of data.train"] = None if hard is None else hard.fingerprint
    weights = Shards(model, processes, recipe.train.cpu_offload) if sharded else Weights(model)
    if pull is not None:
        pull.apply_to(weights)
    optimizer = accelerator.prepare(build_optimizer(weights.trained, recipe.optim, kind, factors))
    peaks = tuple(group["lr"] for group in optimizer.param_groups)
    rates = trained_rates(recipe, model)
    learned = Learned(weights, optimizer.optimizer, recipe.train.ema)
    return Plan(
        recipe=recipe,
        began=began,
        accelerator=accelerator,
        processes=processes,
        data=data,
        sampler=sampler,
        schedule=WarmupCosine(next(iter(rates.values())), recipe.optim.warmup, steps, held),
        peaks=peaks,
        rates=rates,
        first_steps=unfrozen_from,
        pull=pull,
        model=model,
        weights=weights,
        objective=objective_of(recipe, model, pairs, teachers, given.loss, given.objective),
        optimizer=optimizer,
        learned=learned,
        layout=layout,
        start=start,
        largest_logit_scale=largest_logit_scale,
        identity=identity,
        given=given,
    )
