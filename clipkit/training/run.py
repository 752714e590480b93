"""Function `train`: train a model from a recipe and fill a run folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from clipkit.evaluation import Result
from clipkit.image_formats import pixel_limit
from clipkit.models import DualEncoder
from clipkit.models.publish.layout import pretrained_names
from clipkit.processes import Processes, accelerator_of
from clipkit.recipe import Recipe
from clipkit.training.callbacks import Callback
from clipkit.training.closed_form import closed_form_start, measure_start
from clipkit.training.failures import failures_in_one_line
from clipkit.training.folder.resume import StartPoint, find_checkpoint
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.folder.run_log import RunLog
from clipkit.training.given import Given, GivenObjective
from clipkit.training.guards.monitor import Monitor
from clipkit.training.loop import loop
from clipkit.training.measures.measures import measurements_of
from clipkit.training.mixup import mixed
from clipkit.training.opening import announce, open_folder, tower_inputs, training_step
from clipkit.training.outcome import finish
from clipkit.training.plan import Plan, make_plan
from clipkit.training.recorder import Recorder
from clipkit.training.stop import StopRequest
from clipkit.training.throughput import throughput_of


def train(
    recipe: str | Path | Recipe | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    train: object = None,
    validation: object = None,
    model: DualEncoder | None = None,
    loss: Callable[..., Tensor] | None = None,
    objective: GivenObjective | None = None,
    callbacks: Sequence[Callback] = (),
    identity: Literal["content"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Train a model from a recipe and fill its run folder.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 stop the run after it has written a checkpoint.

    Args:
        recipe: a YAML file, a Recipe, or a dict of its sections. Keys that the following objects replace may be
            missing in a file or a dict.
        overrides: changes to the recipe, e.g. `{"optim.lr": 1e-5}`.
        train: training data instead of `data.train`: a dataset of `datasets` or torch, any sequence of (image, caption)
            or (image, captions) pairs or of dicts, a dict of columns, or a DataFrame. Images are paths, PIL images,
            arrays or bytes.
        validation: validation data instead of `data.validation`.
        model: the model instead of `model.name`; it is trained in place, and has the best weights afterwards.
        loss: function of image_features (G, D), text_features (G, D) and, if it names them, scale, bias, image_ids,
            caption_ids and rows; it returns a scalar (docs/python.md).
        objective: an Objective, or a function that receives the recipe's Objective and returns another one.
        callbacks: called after steps, evaluations and checkpoints, and at the end.
        identity: content: read all images of `train` and `validation` once, so that a run on images in memory can be
            resumed; None: such a run cannot be resumed. Files, tables and datasets of `datasets` need no such identity.
        resume: continue from the newest undamaged checkpoint of the run in `output`; without a checkpoint, start; if
            the run is finished, do nothing. Epochs, evaluation, logging, checkpoints, workers and the location of the
            data may be different. Everything that determines the weights after a step must be the same.
        overwrite: replace the run in `output`.

    Returns:
        The content of `results.json` as a Result: the metrics of the best weights on the validation pairs.

    Raises:
        UserError: the recipe, the data, the model or the output is invalid or unsupported; nothing was changed.
        TrainingError: the run cannot continue; the saved files are complete.
        Interrupted: a signal stopped the run (a KeyboardInterrupt, whatever the signal).

    Example:
        >>> train("recipes/finetune_clip.yaml", {"data.train": "mine.csv"})    # doctest: +SKIP
    """
    given = Given(train, validation, model, loss, objective, callbacks, identity)
    recipe = given.recipe(recipe, overrides or {})
    with StopRequest() as stop, pixel_limit(recipe.data.max_pixels), failures_in_one_line():
        accelerator = accelerator_of(recipe.train.precision, recipe.train.timeout_minutes)
        folder = RunFolder(recipe.output)
        with claimed(folder, Processes(accelerator), resume, overwrite, _inputs(recipe)):
            return run(make_plan(recipe, accelerator, given), folder, stop, resume)


def _inputs(recipe: Recipe) -> list[str]:
    """Return the sources and models that a recipe names."""
    data = recipe.data
    sources = [source.source for source in data.sources]
    named = [*sources, data.validation, data.labelled, data.labelled_test, *pretrained_names(recipe.model)]
    return [name for name in named if isinstance(name, str)]


def run(plan: Plan, folder: RunFolder, stop: StopRequest, resume: bool = False) -> Result:
    """Train according to a plan and fill the run folder.

    Args:
        plan: the plan of the run.
        folder: the run folder, locked by this run.
        stop: tells whether a stop signal arrived.
        resume: continue from the newest checkpoint in the folder.

    Returns:
        The content of `results.json`.
    """
    log = RunLog(plan.processes.is_main)
    start = find_checkpoint(folder, plan.recipe, plan.steps, plan.identity, plan.processes) if resume else StartPoint(0)
    if start.finished:
        log.info(f"{folder.path}: the run is already finished (step {plan.steps}); there is nothing to do")
        return Result(json.loads(folder.results.read_text(encoding="utf-8")))
    with log.recording():
        announce(plan, start, log)
        with plan.weights.model_is_whole():
            inputs = tower_inputs(plan, log)  # frozen trunks run once
            closed_form = closed_form_start(plan, inputs, start, folder, log)
            inputs.store_parts()  # and so do frozen first blocks
            measurements = list(measurements_of(plan))
            measure_start(closed_form, measurements, log)
            monitor = Monitor(plan, folder, log.info)
            throughput = throughput_of(plan, inputs)
            recorder = Recorder(plan, folder, log, monitor, measurements, stop, throughput)
            recorder.bad_samples.check_known(inputs.bad)
            monitor.check_before(resumed=start.saved is not None)
        gradients = training_step(plan, inputs, start, monitor, stop, log)
        # Nothing in the folder has changed up to this point.
        state = open_folder(plan, folder, start, gradients, log, closed_form)
        monitor.start(resumed=start.saved is not None)
        plan.processes.on_main(recorder.trackers.start)
        recorder.register_known_bad(inputs.bad, state.step)
        rows = plan.processes.share(plan.recipe.train.batch_size)
        batches = inputs.batches(plan.sampler.slices(state.step, plan.steps, rows), plan.recipe.data.workers)
        batches = mixed(batches, plan, inputs, state.step)
        with failures_in_one_line(lambda: state.step, inputs.worker_progress.last_seen):
            with stop.deferred(), recorder.showing_progress(state.step):
                loop(batches, gradients, plan, state, recorder)
            results = finish(plan, state, recorder)
        recorder.callbacks.end(results)
        recorder.trackers.end(results)
        return Result(results)
