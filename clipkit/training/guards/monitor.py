"""Monitor of a run: it collects, prints and stores findings before and during training."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipkit.findings import Finding, duration
from clipkit.run_files import read_rows
from clipkit.training.folder.resume import best_evaluation
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.guards.batch_statistics import batch_statistics
from clipkit.training.guards.before import before_first_step
from clipkit.training.guards.logs import Facts
from clipkit.training.guards.pretrained import other_settings
from clipkit.training.guards.record import read_findings, write_findings
from clipkit.training.guards.watch import Watch, replay
from clipkit.training.measures.retention import retention_of
from clipkit.training.objectives.objective import Gathered
from clipkit.training.plan import Plan
from clipkit.training.rates import is_pretrained

_TIMED = 5
"""Number of logged steps after which the run prints its expected end; the first step is not timed."""


@dataclass(eq=False)
class Monitor:
    """Monitor of a run. All processes measure retention, and the main process prints and stores the findings.

    `log_line` writes one line to the terminal and to log.txt.
    """

    plan: Plan
    folder: RunFolder
    log_line: Callable[[str], None]

    def __post_init__(self) -> None:
        plan = self.plan
        self._compared: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        """Features and IDs of the last logged batch: first, second, image_ids, caption_ids."""
        self._findings: list[Finding] = []
        self._seconds: list[float] = []
        self._watch: Watch | None = None
        self.start_scale = plan.model.logit_scale.exp().item()
        self.retention = retention_of(plan.recipe, plan.model, plan.data.validation, plan.processes)
        self.retention_start = self.retention.value() if self.retention is not None else None

    @property
    def findings(self) -> list[Finding]:
        """All findings so far."""
        return [*self._findings, *(self._watch.findings if self._watch is not None else [])]

    def check_before(self, resumed: bool) -> None:
        """Collect the findings about recipe, data and model, before the run changes weights or files.

        A resumed run takes these findings from findings.json.
        """
        plan = self.plan
        if not plan.processes.is_main:
            return
        if resumed:
            kept = read_findings(self.folder.path)
            self._findings = [] if kept is None else [finding for finding in kept[1] if finding.step is None]
            return
        self._findings = before_first_step(
            plan.recipe, plan.model, plan.data.train.pairs, plan.data.validation, plan.steps, plan.schedule.warmup_steps
        )
        can_try = plan.recipe.is_cross_modal and plan.data.train.can_index
        if can_try and is_pretrained(plan.recipe):
            self._findings += other_settings(plan.model, plan.data.train.pairs)

    def start(self, resumed: bool) -> None:
        """Print and store the findings so far; for a resumed run, first apply the rules to its logs again."""
        plan, cap = self.plan, self.plan.largest_logit_scale
        facts = Facts(
            batch_size=plan.recipe.train.batch_size,
            rising=plan.schedule.first_at_peak,
            steps=plan.steps,
            chance=plan.objective.chance,
            start_scale=self.start_scale,
            largest_scale=None if cap is None else math.exp(cap),
            metric=plan.recipe.metric,
            sides=plan.objective.sides,
            retention=self.retention.metric if self.retention is not None else None,
            retention_start=self.retention_start,
            validation_images=0 if plan.data.validation is None else len(plan.data.validation.images),
        )
        self._watch = Watch(facts)

        def begin(watch: Watch) -> None:
            files = (self.folder.metrics, self.folder.speed, self.folder.evaluations)
            metrics, speeds, evaluations = (read_rows(file) if resumed else [] for file in files)
            with self.folder.writing():
                list(replay(watch, metrics, speeds, evaluations))
                self._report(self._findings)
                self._write()

        plan.processes.on_main(lambda: begin(self.watch))

    @property
    def watch(self) -> Watch:
        """Rules for the logs of the run; available after `start`."""
        assert self._watch is not None
        return self._watch

    def on_features(self, gathered: Gathered, step: int) -> None:
        """Keep the features of a global batch for `statistics` if the current step is logged.

        `step` is the number of finished steps.
        """
        if self.plan.processes.is_main and self.plan.calendar.logs(step + 1):
            self._compared = *self.plan.objective.compared(gathered), gathered["image_ids"], gathered["caption_ids"]

    def statistics(self) -> dict[str, float]:
        """Return the statistics of the last batch that `on_features` kept; empty if there is none.

        Call this after the step, because it waits for the device.
        """
        return {} if self._compared is None else batch_statistics(*self._compared, self.plan.objective.sides)

    def logged(self, row: Mapping[str, Any], speed: Mapping[str, Any], memory: int) -> None:
        """Apply the rules to a logged step. After the first few steps, log when the run is expected to end.

        Args:
            row: row of the step in metrics.jsonl.
            speed: row of the step in speed.jsonl.
            memory: memory in use, in bytes.
        """
        self._take(self.watch.step(row, speed))
        if len(self._seconds) <= _TIMED:
            self._seconds.append(speed["step_seconds"] + speed["data_wait_seconds"])
            if len(self._seconds) == _TIMED + 1:
                self._report_time_left(row["step"], memory)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Apply the rules to an evaluation, given as a row of evaluations.jsonl."""
        self._take(self.watch.evaluation(row))

    def retained(self) -> dict[str, float]:
        """Measure how well the model keeps its earlier abilities, and return {metric: value}; {} if not measured."""
        return {} if self.retention is None else {self.retention.metric: self.retention.value()}

    def retention_settings(self) -> dict[str, Any]:
        """Measure retention, and return its values before training and now, for the settings of results.json.

        The dict is empty if the run does not measure retention.
        """
        if self.retention is None:
            return {}
        values = {"start": self.retention_start, "chosen": self.retention.value()}
        return {"retention": {"name": self.retention.name, "metric": self.retention.metric, **values}}

    def progress_line(self, figures: Mapping[str, float], step: int) -> str:
        """Return the result of an evaluation as a short text, to append to the log line of an epoch."""
        metric = self.plan.recipe.metric
        if not self.plan.processes.is_main or metric is None or metric not in figures:
            return ""
        best = best_evaluation(self.folder, metric)
        line = f", {metric} {figures[metric]:.4f}"
        if best is not None:
            line += " (the best so far)" if best["step"] == step else f" (best {best[metric]:.4f}, step {best['step']})"
        if self.retention is not None:
            line += f", {self.retention.metric} {figures[self.retention.metric]:.4f} (start {self.retention_start:.4f})"
        return line

    def not_finite(self, step: int, loss: float, norm: float, updated: bool) -> None:
        """Store the finding that the run ends because a value of a step is not finite.

        `updated` is True if the weights after the update are not finite.
        """
        if not self.plan.processes.is_main:
            return
        weights = ", and the updated weights were not finite" if updated else ""
        finding = Finding(
            "not_finite", "error", f"the loss was {loss:.4g} and the gradient norm {norm:.4g}{weights}",
            "try a lower optim.lr, optim.clip: 1.0, or train.precision: fp32; the cause may also be an image "
            "or caption of this step: log.txt lists the images",
            step,
        )  # fmt: skip
        with self.folder.writing():
            self._findings.append(finding)
            self._write()

    def _take(self, new: Sequence[Finding]) -> None:
        self._report(new)
        if new:
            self._write()

    def _report(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.log_line(finding.line())

    def _write(self) -> None:
        write_findings(self.folder.path, self.watch.facts, self.findings)

    def _report_time_left(self, step: int, memory: int) -> None:
        typical = sorted(self._seconds[1:])[_TIMED // 2]
        left = (self.plan.steps - step) * typical
        end = time.strftime("%H:%M" if left < 86400 else "%d %B, %H:%M", time.localtime(time.time() + left))
        self.log_line(
            f"a step takes {typical:.3g} s and {memory / 1e9:.1f} GB of memory so far; without evaluations, the rest "
            f"of the run takes {duration(left)}, until {end}"
        )
