"""Writing of checkpoints, and removal of checkpoints that are no longer needed."""

import time
from dataclasses import dataclass, field
from typing import Any

from clipkit.recipe import CheckpointRecipe
from clipkit.run_files import read_rows
from clipkit.training.folder.checkpoint import (
    Tensors,
    checkpoint_of,
    checkpoint_steps,
    remove_checkpoint,
    write_checkpoint,
)
from clipkit.training.folder.resume import best_evaluation
from clipkit.training.folder.run_folder import RunFolder


@dataclass(eq=False)
class Keeper:
    """Writes checkpoints, and keeps only the last and the best ones.

    Args:
        recipe: section `checkpoint` of the recipe, with the frequency of checkpoints and the number to keep.
        metric: metric that ranks the checkpoints.
    """

    folder: RunFolder
    recipe: CheckpointRecipe
    metric: str | None
    _written: float = field(default_factory=time.monotonic, init=False)

    def is_overdue(self) -> bool:
        """Return whether the last checkpoint is older than `checkpoint.every_minutes`."""
        minutes = self.recipe.every_minutes
        return minutes is not None and time.monotonic() - self._written >= 60 * minutes

    def write(self, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
        """Write the checkpoint of a step, and remove old checkpoints.

        The checkpoint contains the current length of each log.

        Raises:
            TrainingError: the checkpoint cannot be written.
        """
        with self.folder.writing():
            best = best_evaluation(self.folder, self.metric)
            position = {"step": step, "best": best["step"] if best else None, "logs": self.folder.mark()}
            write_checkpoint(self.folder.checkpoints, step, tensors, position | state)
            self.prune()
        self._written = time.monotonic()

    def prune(self) -> None:
        """Remove the checkpoints that are no longer needed.

        The last and the best checkpoints are kept. A run that resumes from one of the last checkpoints also needs the
        best checkpoint before it, so that checkpoint is kept too.
        """
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
        # The sort is stable: ties go to the earlier step.
        best = sorted(rows, key=lambda row: row[str(self.metric)], reverse=True)
        return [row["step"] for row in best[:count]]
