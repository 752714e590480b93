"""Callbacks of a run: functions that are called after steps, evaluations and checkpoints, and at the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.errors import RecipeError, TrainingError
from clipkit.images import kind_of
from clipkit.models import DualEncoder


@dataclass(eq=False)
class Progress:
    """Progress of a run, passed to each method of a callback.

    Args:
        model: the model that is trained.
        folder: the run folder.
        steps: number of updates in the whole run.
        is_main: True on the process that writes files.

    Example:
        >>> run = Progress(None, Path("runs/a"), steps=100, is_main=True)
        >>> run.stop("enough")
        >>> run.step, run.stop_reason
        (0, 'enough')
    """

    model: DualEncoder
    folder: Path
    steps: int
    is_main: bool
    step: int = field(default=0, init=False)
    """Number of updates so far."""
    stop_reason: str | None = field(default=None, init=False)

    def stop(self, reason: str = "a callback stopped it") -> None:
        """Request the end of the run after this step.

        The run ends if any process calls this method. It then writes a checkpoint, its results and its report. The
        reason is logged.
        """
        self.stop_reason = reason


class Callback:
    """Base class of callbacks: override the methods that you need.

    Each method is called on all processes; `run.is_main` is True only on the main process. A callback must not change
    weights or buffers of the model.

    Example:
        >>> class StopEarly(Callback):
        ...     def on_step(self, run, row):
        ...         if row["loss"] < 0.1:
        ...             run.stop("the loss is below 0.1")
        >>> clipkit.train("recipe.yaml", callbacks=[StopEarly()])    # doctest: +SKIP
    """

    def on_step(self, run: Progress, row: dict[str, Any]) -> Mapping[str, float] | None:
        """Handle the end of a step, and optionally return numbers for metrics.jsonl.

        Args:
            run: progress of the run.
            row: row of this step in metrics.jsonl: step, epoch, seen, loss, lr, scale, grad_norm and others.

        Returns:
            Numbers to add to the row, by name; None adds nothing.
        """

    def on_evaluation(self, run: Progress, figures: Mapping[str, float]) -> None:
        """Receive the metrics of an evaluation by name."""

    def on_checkpoint(self, run: Progress, folder: Path) -> None:
        """Receive the folder of a checkpoint that was just written."""

    def on_end(self, run: Progress, result: Mapping[str, Any]) -> None:
        """Receive the content of results.json, after results.json and the model were written."""


def checked_callbacks(callbacks: Sequence[Any]) -> None:
    """Check that `callbacks` is a list of callbacks.

    Raises:
        RecipeError: `callbacks` is a single callback, or an item is not an instance of a subclass of `Callback`.
    """
    if isinstance(callbacks, Callback):
        raise RecipeError(f"callbacks is {kind_of(callbacks)}; give a list: callbacks=[{type(callbacks).__name__}()]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else kind_of(callback)
            raise RecipeError(
                f"callbacks contains {what}, but every item must be an instance of a subclass of clipkit.Callback; "
                "give instances, e.g. callbacks=[MyCallback()]"
            )


@dataclass(frozen=True)
class Callbacks:
    """Calls the callbacks of a run, one after the other."""

    all: Sequence[Callback]
    run: Progress

    def step(self, row: dict[str, Any]) -> dict[str, float]:
        """Call `on_step` of each callback, and return the numbers to add to the row.

        Raises:
            TrainingError: a number is not finite, or its name is already in the row.
        """
        self.run.step = row["step"]
        added: dict[str, float] = {}
        for callback in self.all:
            for name, figure in (callback.on_step(self.run, dict(row)) or {}).items():
                where = f"{type(callback).__name__}.on_step: the number {name}"
                if name in row or name in added:
                    raise TrainingError(f"{where} has the name of another number in metrics.jsonl; use another name")
                if not isinstance(figure, int | float) or not math.isfinite(figure):
                    raise TrainingError(f"{where} is {figure!r}, not a finite number; return a finite float")
                added[name] = figure
        return added

    def evaluation(self, figures: Mapping[str, float]) -> None:
        """Call `on_evaluation` of each callback."""
        for callback in self.all:
            callback.on_evaluation(self.run, figures)

    def checkpoint(self, folder: Path) -> None:
        """Call `on_checkpoint` of each callback."""
        for callback in self.all:
            callback.on_checkpoint(self.run, folder)

    def end(self, result: Mapping[str, Any]) -> None:
        """Call `on_end` of each callback."""
        for callback in self.all:
            callback.on_end(self.run, result)
