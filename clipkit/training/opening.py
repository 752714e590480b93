"""Start of a run: its first log messages, its inputs, its training step and its folder."""

from typing import Any

import torch

from clipkit.files import write_whole
from clipkit.findings import counted
from clipkit.training.folder.checkpoint import checkpoint_of, checkpoint_steps, remove_checkpoint, remove_leftovers
from clipkit.training.folder.resume import StartPoint
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.folder.run_log import RunLog
from clipkit.training.groups import group_lines, peaks_of
from clipkit.training.guards.monitor import Monitor
from clipkit.training.inputs import TowerInputs
from clipkit.training.micro_batch import learns_batch_norm, micro_batch_size_of
from clipkit.training.mixup import check_stored
from clipkit.training.plan import Plan
from clipkit.training.state import State, resumed_micro_batch_size
from clipkit.training.step import Step
from clipkit.training.stop import StopRequest
from clipkit.training.stored.settings import Storing


def announce(plan: Plan, start: StartPoint, log: RunLog) -> None:
    """Log the number of processes, the device, the model, the data, the learning rates and notes."""
    feed, recipe, model = plan.data.train, plan.recipe, plan.model
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count, kind = plan.processes.count, plan.accelerator.device.type
    joined = f" joined by {torch.distributed.get_backend()}" if count > 1 else ""
    log.info(
        f"{count} process{'es' * (count > 1)} on {kind}{joined}, {plan.precision}; {model.name}: "
        f"{trainable / 1e6:.2f} M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters are trained"
    )
    log.info(
        f"{feed.name}: {feed.description}; "
        f"epochs: {recipe.train.epochs}, steps per epoch: {plan.sampler.steps_per_epoch}, "
        f"pairs per step: {recipe.train.batch_size}"
    )
    if recipe.train.shard and not plan.weights.is_sharded:
        log.info("train.shard has no effect on one process")
    elif recipe.train.shard:
        where = ", on the CPU" if recipe.train.cpu_offload else ""
        log.info(
            f"each process keeps 1/{count} of the trunks{where} (train.shard); data.store is used in evaluations only"
        )
        if recipe.train.cpu_offload and kind == "cpu":
            log.info("train.cpu_offload has no effect without a GPU")
    if (held_out := plan.data.validation) is not None:
        counts = [(len(held_out.images), "image")] * held_out.has_images
        counts += [(len(held_out.captions), "caption")] * held_out.has_captions
        log.info(f"validation on {held_out.name}: {', '.join(counted(*count) for count in counts)}")
    rates = " and ".join(f"{rate:g} for {kind} weights" for kind, rate in plan.rates.items())
    policy = recipe.data.policy(recipe.model)
    chosen = f"; data.augment: auto selects {policy}" if recipe.data.augment == "auto" and recipe.is_cross_modal else ""
    if recipe.data.captions == "auto" and recipe.captions(labeled=feed.pairs.classes is not None) == "all":
        chosen += "; data.captions: auto selects all"
    log.info(f"peak learning rate: {rates}{chosen}")
    peaks = peaks_of(plan.weights.trained, plan.optimizer.param_groups, plan.peaks)
    for line in group_lines(model, peaks, plan.first_steps):
        log.info(f"  {line}")
    if plan.schedule.held:
        log.info(
            f"steps 1 to {plan.schedule.held} only estimate the moments of AdamW (optim.warm_moments); weights do not "
            "change"
        )
    for name, part in (("scale", model.logit_scale.exp()), ("bias", model.logit_bias)):
        key = f"loss.logit_{name}"
        if part is not None and recipe.is_cross_modal and getattr(recipe.loss, f"logit_{name}") != "train":
            log.info(f"the logit {name} is fixed at {part.item():.4g} ({key})")
    if feed.pairs.found:
        log.info(f"columns: {', '.join(f'{role} from {column}' for role, column in feed.pairs.found.items())}")
    for note in (*plan.given.notes, *plan.data.notes, *start.notes):
        log.info(note)
    if start.step:
        log.info(f"resuming after step {start.step}")


def tower_inputs(plan: Plan, log: RunLog) -> TowerInputs:
    """Build the inputs of the objective, and run frozen trunks once on all data."""
    inputs = TowerInputs(
        plan.model,
        plan.data.train,
        plan.processes,
        plan.objective.encoded,
        augmented=bool(plan.recipe.data.augmentation(plan.recipe.model)),
        seed=plan.recipe.train.seed,
        replacement=plan.sampler.replacement,
        bad=plan.data.missing,
        storing=storing_of(plan, log),
        outputs=plan.given.outputs,
    )
    check_stored(plan, inputs)
    if inputs.stores and inputs.storing is None and not inputs.outputs:
        kinds = {"image_features": "images", "text_features": "captions"}
        stored = [kind for name, kind in kinds.items() if name in inputs.stores]
        log.info(f"frozen trunks ran once over all {' and '.join(stored)}")
    return inputs


def storing_of(plan: Plan, log: RunLog) -> Storing | None:
    """Return the settings for storing inputs on disk; None if the run stores nothing on disk."""
    recipe = plan.recipe
    if recipe.data.store is None or plan.weights.is_sharded:  # a sharded trunk cannot start at stored activations
        return None
    return Storing(
        recipe.data.store,
        plan.processes,
        plan.steps * recipe.train.batch_size,
        views=recipe.data.views,
        seed=recipe.train.seed,
        workers=recipe.data.workers,
        autocast=plan.accelerator.autocast,
        log=log.info,
    )


def training_step(
    plan: Plan, inputs: TowerInputs, start: StartPoint, monitor: Monitor, stop: StopRequest, log: RunLog
) -> Step:
    """Build the training step, with the micro-batch size of the recipe or the largest that fits."""
    recipe, resumed = plan.recipe, resumed_micro_batch_size(plan, start.saved)
    size = micro_batch_size_of(recipe, plan.model, inputs, plan.processes, plan.accelerator, resumed)
    log.info(f"micro-batch size on each process: {size}")
    return Step(
        plan.model,
        inputs.encoders,
        plan.objective.value,
        plan.processes,
        plan.accelerator,
        recipe.train.batch_size,
        size,
        recipe.train.seed,
        may_split=not learns_batch_norm(plan.model, recipe.model),
        stop_requested=lambda: stop.signal is not None,
        log=log.info,
        on_features=monitor.on_features,
        is_sharded=plan.weights.is_sharded,
    )


def open_folder(
    plan: Plan,
    folder: RunFolder,
    start: StartPoint,
    gradients: Step,
    log: RunLog,
    closed_form: dict[str, Any] | None = None,
) -> State:
    """Prepare the run folder, and return the state from which the run starts.

    For a new run, the folder is cleared. For a resumed run, the folder is restored to its content at the checkpoint.
    """
    state = State(plan, gradients, closed_form)
    if start.saved is not None:
        state.restore(checkpoint_of(folder.checkpoints, start.step), start.saved, start.step)

    def restore_folder() -> None:
        with folder.writing():
            folder.start()
            if start.saved is None:
                folder.clear()
            else:
                remove_leftovers(folder.checkpoints)
                for later in checkpoint_steps(folder.checkpoints):
                    if later > start.step:
                        remove_checkpoint(checkpoint_of(folder.checkpoints, later))
                folder.cut(start.saved["logs"], start.step)
            write_whole(folder.recipe, plan.recipe.without_credentials().to_yaml())
            log.write_to(folder.log)

    plan.processes.on_main(restore_folder)
    return state
