"""Which checkpoints there are at any time."""

import time
from typing import Any

from clipkit.recipe import CheckpointRecipe
from clipkit.run_files import read_rows
from clipkit.training.folder.checkpoint import checkpoint_of, checkpoint_steps, remove_checkpoint, write_checkpoint
from clipkit.training.folder.learned import Learned
from clipkit.training.folder.resume import best_evaluation
from clipkit.training.folder.run_folder import RunFolder


class Keeper:
    """Writes checkpoints and removes those that are neither among the last nor among the best.

    Args:
        folder: the run's.
        recipe: how often, how many.
        metric: what the best ones are best at.
    """

    def __init__(self, folder: RunFolder, recipe: CheckpointRecipe, metric: str | None) -> None:
        self.folder = folder
        self.recipe = recipe
        self.metric = metric
        self._written = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the recipe wants one after this step."""
        return step % self.recipe.every_steps == 0

    def is_overdue(self) -> bool:
        """Whether the last one was written too long ago."""
        minutes = self.recipe.every_minutes
        return minutes is not None and time.monotonic() - self._written >= 60 * minutes

    def write(self, step: int, learned: Learned, state: dict[str, Any]) -> None:
        """Write the checkpoint of a step with its place in the logs, and remove what need not be kept.

        Raises:
            TrainingError: it could not be written.
        """
        with self.folder.writing():
            best = best_evaluation(self.folder, self.metric)
            own = {"step": step, "best": best["step"] if best else None, "logs": self.folder.mark()}
            write_checkpoint(self.folder.checkpoints, step, learned.tensors(), own | state)
            self.prune()
        self._written = time.monotonic()

    def prune(self) -> None:
        """Keep the last ones, the best ones, and those that were the best when one of the last was written."""
        steps = checkpoint_steps(self.folder.checkpoints)
        evaluated = [row for row in read_rows(self.folder.evaluations) if row["step"] in steps]
        last = steps[-self.recipe.keep_last :]
        kept = {*last, *self._best_steps(evaluated, self.recipe.keep_best)}
        for step in last:
            kept.update(self._best_steps([row for row in evaluated if row["step"] < step], 1))
        for step in steps:
            if step not in kept:
                remove_checkpoint(checkpoint_of(self.folder.checkpoints, step))

    def _best_steps(self, rows: list[dict[str, Any]], count: int) -> list[int]:
        # The sort is stable: of equals the earlier is the better one.
        best = sorted(rows, key=lambda row: row[str(self.metric)], reverse=True)
        return [row["step"] for row in best[:count]]
