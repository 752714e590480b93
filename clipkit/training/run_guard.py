"""What a run looks at beside learning: findings, figures of its batches, what is left of what it knew."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.folder.resume import best_evaluation
from clipkit.training.folder.run_folder import RunFolder, read_rows
from clipkit.training.guards import (
    Facts,
    Finding,
    Guards,
    before_first_step,
    is_pretrained,
    other_settings,
    read_findings,
)
from clipkit.training.guards.batch_statistics import batch_statistics
from clipkit.training.measures.retention import Retention, retention_of
from clipkit.training.objectives.loss_sum import needs
from clipkit.training.objectives.objective import Gathered, Objective
from clipkit.training.run_data import RunData


class RunGuard:
    """The guards of one run, with what they are told.

    Args:
        recipe: of the run.
        folder: the run's.
        processes: findings are the first one's; what is retained is measured by all.
        say: where a finding is told.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, processes: Processes, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.folder = folder
        self.processes = processes
        self.guards = Guards(folder.path, say)
        self.statistics: dict[str, float] = {}
        """Of the last batch that was looked at."""
        self.retention: Retention | None = None
        self.retention_start: float | None = None
        self._before: list[Finding] = []
        self._start_scale = 1.0

    def look_before(self, model: DualEncoder, data: RunData, steps: int, rising: int, resumed: bool) -> None:
        """Find what there is to find before the first step, with the weights as they came."""
        self._start_scale = model.logit_scale.exp().item()
        self.retention = retention_of(self.recipe, model, data.validation, self.processes)
        self.retention_start = self.retention.value() if self.retention is not None else None
        if not self.processes.is_main:
            return
        if resumed:
            kept = read_findings(self.folder.path)
            self._before = [] if kept is None else [own for own in kept[1] if own.step is None]
            return
        self._before = before_first_step(self.recipe, model, data.train.pairs, data.validation, steps, rising)
        tried = "captions" in self.recipe.objective and data.train.can_index
        if tried and is_pretrained(self.recipe):
            self._before += other_settings(model, data.train.pairs)

    def begin(self, objective: Objective, steps: int, rising: int, largest_logit_scale: float, resumed: bool) -> None:
        """Say what was found; of a run that goes on the logs so far are read again."""
        heeds_bias = "captions" in self.recipe.objective and needs(self.recipe.loss, "bias")
        facts = Facts(
            batch_size=self.recipe.train.batch_size,
            rising=rising,
            steps=steps,
            chance=objective.chance,
            start_scale=self._start_scale,
            largest_scale=None if heeds_bias else math.exp(largest_logit_scale),
            metric=self.recipe.metric,
            sides=objective.sides,
            retention=self.retention.metric if self.retention is not None else None,
            retention_start=self.retention_start,
        )

        def begin() -> None:
            files = (self.folder.metrics, self.folder.speed, self.folder.evaluations)
            logs = [read_rows(file) for file in files] if resumed else [[], [], []]
            with self.folder.writing():
                self.guards.begin(self._before, facts, *logs)

        self.processes.on_main(begin)

    def look(self, gathered: Gathered, objective: Objective, is_logged: bool) -> None:
        """At the features of a step."""
        if self.processes.is_main and is_logged:
            ids = gathered["image_ids"], gathered["caption_ids"]
            self.statistics = batch_statistics(*objective.compared(gathered), *ids, objective.sides)

    def retained(self) -> dict[str, float]:
        """What is left, by its name in evaluations.jsonl."""
        return {} if self.retention is None else {self.retention.metric: self.retention.value()}

    def settings(self) -> dict[str, Any]:
        """What results.json says of it, of the weights as they are."""
        if self.retention is None:
            return {}
        own = {"start": self.retention_start, "chosen": self.retention.value()}
        return {"retention": {"name": self.retention.name, "metric": self.retention.metric, **own}}

    def said_of(self, figures: Mapping[str, float], step: int) -> str:
        """The figures that a person follows."""
        metric = self.recipe.metric
        if not self.processes.is_main or metric is None or metric not in figures:
            return ""
        best = best_evaluation(self.folder, metric)
        said = f", {metric} {figures[metric]:.4f}"
        if best is not None:
            said += " (the best so far)" if best["step"] == step else f" (best {best[metric]:.4f}, step {best['step']})"
        if self.retention is not None:
            said += f", {self.retention.metric} {figures[self.retention.metric]:.4f} (start {self.retention_start:.4f})"
        return said

    def not_finite(self, step: int, loss: float, norm: float) -> None:
        """Note why the run stops."""
        if not self.processes.is_main:
            return
        finding = Finding(
            "not_finite",
            "error",
            f"the loss was {loss:.4g} and the gradient's norm {norm:.4g}",
            "try a lower optim.lr, optim.clip: 1.0, or train.precision: fp32; an image or caption of the step may be "
            "at fault: log.txt names them",
            step,
        )
        with self.folder.writing():
            self.guards.stopped(finding)
