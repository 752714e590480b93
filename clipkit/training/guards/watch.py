"""Rules that read the logs of a run while it trains, and report each finding once.

They need nothing but the rows of metrics, speed and evaluations: `clipkit doctor` applies them to a finished run.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from clipkit.findings import Finding

Row = Mapping[str, Any]

_WINDOW = 20
"""Number of logged steps that a rule reads."""
_EVERY = 5
"""Logged steps from one check to the next, to keep the cost low."""
_NEAR_CHANCE = 0.02
_BY_LUCK = 5.0
_COLLAPSED = 0.95
_FALLEN = 0.7
_EXPLODED = 20.0
_WAITING = 0.2
_PATIENCE = 3
_WORSE = 0.95
_FORGOTTEN = {"retention_similarity": 0.5}
"""Limits as a share of the value before the first step; similarities change in any fine-tuning."""
_FORGOTTEN_FIGURE = 0.9


@dataclass(frozen=True)
class Facts:
    """Facts about a run that the rules need besides its logs."""

    batch_size: int
    rising: int
    """Number of warmup steps."""
    steps: int
    """Number of steps of the whole run."""
    chance: float | None
    """Loss at equal similarities; None: the loss has no such level."""
    start_scale: float
    largest_scale: float | None
    """Upper limit of the scale; None: not limited."""
    metric: str | None
    """Metric that chooses the best weights."""
    sides: tuple[str, str] = ("image", "text")
    """Prefixes of the statistics in metrics.jsonl, as in `image_accuracy`."""
    retention: str | None = None
    """Name of the retention metric in evaluations.jsonl."""
    retention_start: float | None = None
    """Retention before the first step."""


class Watch:
    """Reads the logged rows in order, and reports each finding once.

    Args:
        facts: facts about the run.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.findings: list[Finding] = []
        self._rows: deque[Row] = deque(maxlen=_WINDOW)
        self._speeds: deque[Row] = deque(maxlen=_WINDOW)
        self._norms: deque[float] = deque(maxlen=200)
        self._evaluations: list[Row] = []
        self._seen = 0

    def step(self, row: Row, speed: Row | None) -> list[Finding]:
        """Read a row of metrics.jsonl, and its row of speed.jsonl; return the new findings."""
        self._rows.append(row)
        self._norms.append(row["grad_norm"])
        self._seen += 1
        # The first steps fetch, allocate and compile.
        if speed is not None and self._seen > _EVERY:
            self._speeds.append(speed)
        if self._seen % _EVERY or len(self._rows) < _WINDOW:
            return []
        return self._new(self._of_steps(), row["step"])

    def evaluation(self, row: Row) -> list[Finding]:
        """Read a row of evaluations.jsonl; return the new findings."""
        self._evaluations.append(row)
        return self._new(self._of_evaluations(), row["step"])

    def _new(self, rules: Sequence[tuple[str, Callable[[], tuple[str, str] | None]]], step: int) -> list[Finding]:
        known = {finding.name for finding in self.findings}
        new = []
        for name, rule in rules:
            result = rule() if name not in known else None
            if result is not None:
                message, advice = result
                new.append(Finding(name, "warning", message, advice, step))
        self.findings += new
        return new

    def _of_steps(self) -> Sequence[tuple[str, Callable[[], tuple[str, str] | None]]]:
        return (
            ("loss_at_chance", self._at_chance),
            ("collapsed", self._collapsed),
            ("scale_at_cap", self._scale_at_cap),
            ("scale_falls", self._scale_falls),
            ("gradient_explodes", self._gradient_explodes),
            ("one_direction", self._one_direction),
            ("data_wait", self._data_wait),
        )

    def _of_evaluations(self) -> Sequence[tuple[str, Callable[[], tuple[str, str] | None]]]:
        return (("validation_worse", self._validation_worse), ("forgetting", self._forgetting))

    def _mean(self, name: str) -> float | None:
        values = [row[name] for row in self._rows if name in row]
        return statistics.fmean(values) if len(values) == len(self._rows) else None

    @property
    def _is_warm(self) -> bool:
        """True if the whole window lies after the warmup, and after the first tenth of a short run."""
        return self._rows[0]["step"] > max(self.facts.rising, min(50, self.facts.steps // 10))

    def _at_chance(self) -> tuple[str, str] | None:
        level, loss = self.facts.chance, self._mean("loss")
        if not level or not self._is_warm or loss is None or abs(loss - level) > _NEAR_CHANCE * level:
            return None
        # The mean of a margin loss may be at this level although most pairs are retrieved correctly.
        accuracies = [self._mean(f"{side}_accuracy") for side in self.facts.sides]
        if any(accuracy is not None and accuracy > _BY_LUCK / self.facts.batch_size for accuracy in accuracies):
            return None
        return (
            f"the loss is {loss:.3f}, the value for equal similarities ({level:.3f}): the model does not tell pairs "
            "apart",
            "check that captions belong to their images (clipkit data preview, clipkit data check), then try an "
            "optim.lr ten times higher or lower, and a longer optim.warmup",
        )

    def _collapsed(self) -> tuple[str, str] | None:
        if not self._is_warm:
            return None
        for side in self.facts.sides:
            cosine = self._mean(f"{side}_cosine")
            if cosine is not None and cosine > _COLLAPSED:
                return (
                    f"features of different samples are nearly the same ({side}: mean cosine {cosine:.3f})",
                    "lower optim.lr, lengthen optim.warmup, and check that the samples differ (clipkit data preview)",
                )
        return None

    def _scale_at_cap(self) -> tuple[str, str] | None:
        cap = self.facts.largest_scale
        if cap is None or self.facts.start_scale > 0.95 * cap:  # a pretrained CLIP starts at the cap
            return None
        if not all(row.get("scale", 0.0) >= 0.999 * cap for row in self._rows):
            return None
        return (
            f"the scale has risen to its cap of {cap:.4g}: matching the pairs of a batch is too easy",
            "use a larger train.batch_size, more augmentation or fewer epochs",
        )

    def _scale_falls(self) -> tuple[str, str] | None:
        scales = [row["scale"] for row in self._rows if "scale" in row]
        if len(scales) < _WINDOW or scales[-1] > _FALLEN * self.facts.start_scale:
            return None
        if any(later > earlier for earlier, later in pairwise(scales)):
            return None
        return (
            f"the scale falls steadily, from {self.facts.start_scale:.4g} to {scales[-1]:.4g}: the model becomes less "
            "certain about the pairs",
            "many captions may fit several images of the batch, or not fit their own: run clipkit data check, and "
            "lower optim.lr",
        )

    def _gradient_explodes(self) -> tuple[str, str] | None:
        earlier = list(self._norms)[:-_EVERY]
        usual = statistics.median(earlier)
        high = [norm for norm in list(self._norms)[-_EVERY:] if norm > _EXPLODED * usual]
        if len(high) < 3 or not self._is_warm:
            return None
        return (
            f"the gradient norm is {max(high):.3g}; it was usually {usual:.3g}",
            "lower optim.lr, set optim.clip: 1.0, and use train.precision: bf16 or fp32 rather than fp16",
        )

    def _one_direction(self) -> tuple[str, str] | None:
        accuracies = {side: self._mean(f"{side}_accuracy") for side in self.facts.sides}
        known = {side: value for side, value in accuracies.items() if value is not None}
        if len(known) < 2 or not self._is_warm:
            return None
        (better, high), (worse, low) = sorted(known.items(), key=lambda item: -item[1])
        if high < max(0.2, 10 / self.facts.batch_size) or low > high / 4:
            return None
        return (
            f"within a batch, retrieval works from {better} to {worse} ({high:.0%} correct), but not from {worse} to "
            f"{better} ({low:.0%})",
            f"many samples on the {worse} side may be alike, or one tower hardly learns: check the captions, and "
            "model.image.tune and model.text.tune",
        )

    def _data_wait(self) -> tuple[str, str] | None:
        if len(self._speeds) < _WINDOW:
            return None
        waited = sum(row["data_wait_seconds"] for row in self._speeds)
        share = waited / max(1e-9, waited + sum(row["step_seconds"] for row in self._speeds))
        if share <= _WAITING:
            return None
        return (
            f"the run spends {share:.0%} of its time waiting for data",
            "raise data.workers, or store the images in a smaller size (clipkit data prepare)",
        )

    def _validation_worse(self) -> tuple[str, str] | None:
        metric = self.facts.metric
        values = [row[metric] for row in self._evaluations if metric is not None and metric in row]
        if len(values) <= _PATIENCE:
            return None
        best = max(values[:-_PATIENCE])
        last = values[-_PATIENCE:]
        if best <= 0 or max(last) > _WORSE * best:
            return None
        return (
            f"{metric} was {best:.4f}, but at most {max(last):.4f} in the last {_PATIENCE} evaluations",
            "the best weights are kept; use fewer epochs, a lower optim.lr, or eval.patience, which ends such a run",
        )

    def _forgetting(self) -> tuple[str, str] | None:
        name, start = self.facts.retention, self.facts.retention_start
        if name is None or start is None or start <= 0 or name not in self._evaluations[-1]:
            return None
        now = self._evaluations[-1][name]
        if now > _FORGOTTEN.get(name, _FORGOTTEN_FIGURE) * start:
            return None
        return (
            f"the model forgets: {name} was {start:.3f} before the first step and is {now:.3f} now",
            "lower optim.lr, tune fewer blocks (model.image.tune: last:4), or use weights between start and end "
            "(eval.interpolate: true, clipkit merge --alpha)",
        )


def replay(
    watch: Watch, metrics: Sequence[Row], speeds: Sequence[Row], evaluations: Sequence[Row]
) -> Iterator[Finding]:
    """Yield the findings of existing logs, in the order in which the run would have reported them."""
    speed_of = {row["step"]: row for row in speeds}
    waiting = deque(evaluations)
    for row in metrics:
        yield from watch.step(row, speed_of.get(row["step"]))
        while waiting and waiting[0]["step"] <= row["step"]:
            yield from watch.evaluation(waiting.popleft())
    for row in waiting:
        yield from watch.evaluation(row)
