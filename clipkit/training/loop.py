"""Training loop of a run."""

import time
from collections.abc import Generator
from contextlib import closing

from clipkit.data import Batch
from clipkit.training.plan import Plan
from clipkit.training.recorder import Recorder
from clipkit.training.state import State
from clipkit.training.step import Abandoned, Step
from clipkit.training.update import NotFinite, update


def loop(batches: Generator[Batch, None, None], gradients: Step, plan: Plan, state: State, recorder: Recorder) -> None:
    """Train from the step of `state` to the last step.

    Training ends earlier if the evaluations stop improving (`eval.patience`) or a callback stops the run.

    Args:
        batches: this process's rows of each global batch.
        recorder: writes logs and checkpoints, and evaluates.

    Raises:
        Interrupted: a signal stopped the run; a checkpoint was written.
        TrainingError: the run cannot continue; the saved files are complete.
    """
    with closing(batches):
        if plan.calendar.evaluates_after(state.step):  # the run was interrupted between a checkpoint and its evaluation
            recorder.evaluate(state)
        waited_from = time.perf_counter()
        for batch in batches:
            began = time.perf_counter()
            try:
                row = update(batch, gradients, plan, state)
            except Abandoned:
                recorder.stop(state)
            except NotFinite as error:
                recorder.stop_at_last_good(state, batch, error)
            row |= recorder.callbacks.step(row)
            recorder.log(row, batch, waited=began - waited_from, took=time.perf_counter() - began)
            overdue = recorder.agree(state, batch.bad)
            recorder.stop_if_requested(state)
            evaluates = plan.calendar.evaluates_after(state.step) or recorder.callback_stops
            saves = plan.calendar.saves_after(state.step) or recorder.callback_stops
            if overdue or saves or (evaluates and recorder.measurements):
                recorder.save(state)
            if evaluates and recorder.evaluate(state, row):
                break
            waited_from = time.perf_counter()
