"""Output of a run during training: logs, checkpoints, detected problems, the best model, and terminal messages."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tqdm.auto import tqdm

from clipkit.data import Batch
from clipkit.errors import TrainingError
from clipkit.run_files import append
from clipkit.training.callbacks import Callbacks, Progress
from clipkit.training.folder.bad_samples import BadSamples
from clipkit.training.folder.checkpoint import checkpoint_of
from clipkit.training.folder.keeper import Keeper
from clipkit.training.folder.resume import best_evaluation, out_of_patience
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.folder.run_log import RunLog
from clipkit.training.folder.trackers import Trackers
from clipkit.training.guards.monitor import Monitor
from clipkit.training.kept_model import keep_model
from clipkit.training.measures.measurement import Measurement
from clipkit.training.micro_batch import memory_in_use
from clipkit.training.plan import Plan
from clipkit.training.state import State
from clipkit.training.stop import StopRequest
from clipkit.training.throughput import Throughput
from clipkit.training.update import NotFinite

_WAITING_SHOWN = 0.05
"""Share of the time above which the progress bar shows that the run waits for data."""


@dataclass(eq=False)
class Recorder:
    """Output of a run to its folder, the terminal and the trackers.

    All processes call its methods, but only the main process writes.

    Args:
        folder: the run folder, locked by this run.
        run_log: writes lines to the terminal and to log.txt.
        monitor: the guards, which check the run for problems.
        stop_request: tells whether a stop signal arrived.
        throughput: peak speed of the device, and number of operations of the towers.
    """

    plan: Plan
    folder: RunFolder
    run_log: RunLog
    monitor: Monitor
    measurements: list[Measurement]
    stop_request: StopRequest
    throughput: Throughput
    callback_stops: bool = field(default=False, init=False)
    """True if a callback on any process has ended the run; set by `agree`."""
    _write_failure: TrainingError | None = field(default=None, init=False)
    _bar: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self.log_line = self.run_log.info
        self.processes = plan.processes
        self.metric = plan.recipe.metric
        self.keeper = Keeper(self.folder, plan.recipe.checkpoint, self.metric)
        self.trackers = Trackers(plan.accelerator, plan.recipe, self.folder.tracking)
        progress = Progress(plan.model, self.folder.path, plan.steps, self.processes.is_main)
        self.callbacks = Callbacks(plan.given.callbacks, progress)
        self.bad_samples = BadSamples(plan.data.train, plan.data.max_bad, self.folder, plan.processes)

    @contextmanager
    def showing_progress(self, step: int) -> Iterator[None]:
        """Return a context with a progress bar, for a run that continues after `step`."""
        batch_size = self.plan.recipe.train.batch_size
        self._bar = tqdm(
            total=self.plan.steps * batch_size,
            initial=step * batch_size,
            unit=" pairs",
            unit_scale=True,
            disable=None if self.processes.is_main else True,  # None: shown on a terminal only
        )
        with self._bar:
            yield

    def register_known_bad(self, bad: Mapping[int, str], step: int) -> None:
        """Add the images that are already known to be missing or unreadable to the list of bad images.

        Args:
            bad: reasons why images are missing or unreadable, by position.
        """
        self.bad_samples.resume()
        if self.bad_samples.any_new(bad):
            self.bad_samples.add(bad, step)
        if bad:
            first = self.plan.data.train.image_name(min(bad))
            are = "image is" if len(bad) == 1 else "images are"
            self.log_line(f"{len(bad)} {are} missing or unreadable (first: {first}) and replaced by other pairs")

    def log(self, row: dict[str, Any], batch: Batch, waited: float, took: float) -> None:
        """Show the speed of a step on the progress bar, and log the step if it is due.

        A logged step gets a row in metrics.jsonl and a row in speed.jsonl.

        Args:
            row: the row that `update` returned.
            batch: this process's rows.
            waited: seconds that the run waited for the batch.
            took: seconds that the update took.
        """
        if not self.processes.is_main:
            return
        step, memory = row["step"], memory_in_use()
        speed = {
            "step": step,
            "pairs_per_second": round(self.plan.recipe.train.batch_size / (took + waited), 2),
            "step_seconds": round(took, 4),
            "data_wait_seconds": round(waited, 4),
            "waiting": round(waited / (took + waited), 4),
            "memory_bytes": memory,
        }
        if (share := self.throughput.share(batch, took)) is not None:
            speed["mfu"] = round(share, 4)
        if (reopened := self.plan.data.train.reopened) is not None:
            speed["reopened_connections"] = reopened
        self._bar.update(self.plan.recipe.train.batch_size)
        self._bar.set_postfix_str(_postfix(row["loss"], speed))
        if not self.plan.calendar.logs(step):
            return
        row |= self.monitor.statistics()
        try:
            with self.folder.writing():
                append(self.folder.metrics, row)
                append(self.folder.speed, speed)
                self.monitor.logged(row, speed, memory)
            self.trackers.log("train", row, step)
            self.trackers.log("speed", speed, step)
        except TrainingError as error:
            self._write_failure = error  # `agree` raises the error on all processes

    def agree(self, state: State, bad: Mapping[int, str]) -> bool:
        """Exchange write failures, new bad images and stop requests of callbacks with the other processes.

        Returns:
            True if a checkpoint is due because of `checkpoint.every_minutes`.

        Raises:
            TrainingError: a log could not be written, or there are too many bad images.
        """
        write_failed, overdue, new_bad_images, self.callback_stops = self.processes.any(
            self._write_failure is not None,
            self.processes.is_main and self.keeper.is_overdue(),
            self.bad_samples.any_new(bad),
            self.callbacks.run.stop_reason is not None,
        )
        if write_failed:
            raise self._write_failure or TrainingError(
                "the main process cannot write to the run folder; see the error message of the main process"
            )
        if new_bad_images:
            self.bad_samples.add(bad, state.step)
            if self.bad_samples.are_too_many:
                self.save(state)
                self.bad_samples.check(state.step)
        return overdue

    def save(self, state: State) -> None:
        """Write a checkpoint, unless this step already has one.

        Raises:
            TrainingError: the checkpoint cannot be written.
        """
        if state.saved_at != state.step:
            saved, tensors = state.to_save(), self.plan.learned.tensors()
            self.processes.on_main(lambda: self.keeper.write(state.step, tensors, saved))
            state.saved_at = state.step
            self.callbacks.checkpoint(checkpoint_of(self.folder.checkpoints, state.step))

    def stop_if_requested(self, state: State) -> None:
        """Write a checkpoint and end the run if any process has received a stop signal.

        Raises:
            Interrupted: a process has received a stop signal.
        """
        if self.processes.largest(int(self.stop_request.signal or 0)):
            self.stop(state)

    def stop(self, state: State) -> NoReturn:
        """Write a checkpoint and end the run because of a signal.

        Raises:
            Interrupted: always.
        """
        number = self.processes.largest(int(self.stop_request.signal or 0))
        self.save(state)
        when = f"after step {state.step}, which has a checkpoint" if state.step else "before the first step"
        raise self.stop_request.interrupted(when, number)

    def stop_at_last_good(self, state: State, batch: Batch, error: NotFinite) -> NoReturn:
        """End the run after a step whose loss, gradient norm or weights are not finite.

        The images of this step are logged. If the model still has the weights of the previous step, they are saved.

        Raises:
            TrainingError: always.
        """
        rows = batch.image_ids[:, None].to(self.plan.accelerator.device)
        positions = self.processes.gather(rows, self.plan.recipe.train.batch_size)[:, 0].tolist()
        names = [Path(self.plan.data.train.image_name(position)).name for position in positions]
        if not error.updated and self.plan.weights.are_finite():
            self.save(state)
        step = state.step + 1
        self.monitor.not_finite(step, error.loss, error.norm, error.updated)
        self.log_line(f"images of step {step}: {' '.join(names)}")
        weights = "no weights were saved before this step"
        if state.saved_at:
            weights = f"the weights after step {state.saved_at} are in {self.folder.checkpoints}"
        updated = ", and the updated weights are not finite" if error.updated else ""
        raise TrainingError(
            f"step {step}: the loss is {error.loss:.4g} and the gradient norm is {error.norm:.4g}{updated} ({weights}; "
            f"{self.folder.log} lists the images of step {step}: {names[0]}, …); try a lower optim.lr, a lower "
            "optim.clip or train.precision: fp32"
        )

    def figures(self) -> dict[str, float]:
        """Return the metrics of the current weights."""
        figures = {name: value for one in self.measurements for name, value in one.figures().items()}
        return figures | self.monitor.retained()

    def evaluate(self, state: State, row: Mapping[str, Any] | None = None) -> bool:
        """Evaluate the model, and save it if it is the best one so far.

        Args:
            row: this step's row of metrics.jsonl, for the log line; None: no log line.

        Returns:
            True if the run ends early because of `eval.patience` or of a callback.
        """
        figures: dict[str, float] = {}
        if self.measurements:
            with self.plan.learned.chosen():
                with self.stop_request.deferred(False):  # a signal may now stop the run
                    figures = self.figures()
                self.processes.on_main(lambda: self._keep(state.step, figures))
            self.callbacks.evaluation(figures)
        if row is None:
            return False
        epochs = f"epoch {state.step // self.plan.sampler.steps_per_epoch}/{self.plan.recipe.train.epochs}"
        self.log_line(
            f"{epochs}, step {state.step}: loss {row['loss']:.4f}{self.monitor.progress_line(figures, state.step)}"
        )
        if self.callback_stops:
            self.log_line(f"the run ends after step {state.step}: {self.callbacks.run.stop_reason or 'a callback'}")
            return True
        waited = self.processes.is_main and out_of_patience(self.folder, self.plan.recipe)
        ended = bool(self.processes.of_main(int(waited))) and state.step < self.plan.steps
        if ended:
            patience = self.plan.recipe.eval.patience
            did = "evaluation was" if patience == 1 else "evaluations were"
            self.log_line(
                f"the last {patience} {did} not better than the best one before, so the run ends (eval.patience)"
            )
        return ended

    def _keep(self, step: int, figures: dict[str, float]) -> None:
        row = {"step": step, **figures}
        with self.folder.writing():
            append(self.folder.evaluations, row)
            self.monitor.evaluated(row)
        self.trackers.log("eval", figures, step)
        with self.folder.writing():
            best = best_evaluation(self.folder, self.metric)
            if best is not None and best["step"] == step:
                keep_model(self.plan, self.folder)
            self.keeper.prune()


def _postfix(loss: float, speed: Mapping[str, float]) -> str:
    """Return the text at the end of the progress bar."""
    parts = [f"loss {loss:.3f}"]
    if speed["waiting"] > _WAITING_SHOWN:
        parts.append(f"waiting {speed['waiting']:.0%}")
    if "mfu" in speed:
        parts.append(f"mfu {speed['mfu']:.0%}")
    return ", ".join([*parts, f"{speed['memory_bytes'] / 1e9:.1f} GB"])
