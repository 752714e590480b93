"""Carry out the plan of a training run and fill its run folder."""

import json

from clipkit.evaluation import Result
from clipkit.training.closed_form import closed_form_start, measure_start
from clipkit.training.failures import failures_in_one_line
from clipkit.training.folder.resume import StartPoint, find_checkpoint
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.folder.run_log import RunLog
from clipkit.training.guards.monitor import Monitor
from clipkit.training.loop import loop
from clipkit.training.measures.measures import measurements_of
from clipkit.training.mixup import mixed
from clipkit.training.opening import announce, open_folder, tower_inputs, training_step
from clipkit.training.outcome import finish
from clipkit.training.plan import Plan
from clipkit.training.recorder import Recorder
from clipkit.training.stop import StopRequest
from clipkit.training.throughput import throughput_of


def run(plan: Plan, folder: RunFolder, stop: StopRequest, resume: bool = False) -> Result:
    """Train according to a plan and fill the run folder.

    Args:
        folder: the run folder, locked by this run.
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
