"""What a run's logs say while it is on: each finding once, from the lines of metrics, speed and evaluations alone.

The same rules read a finished run's files: `clipkit doctor` replays them.
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
"""Logged steps that a rule looks back on."""
_EVERY = 5
"""Logged steps from one look to the next: rules cost nothing that way."""
_NEAR_CHANCE = 0.02
_BY_LUCK = 5.0
_COLLAPSED = 0.95
_FALLEN = 0.7
_EXPLODED = 20.0
_WAITING = 0.2
_PATIENCE = 3
_WORSE = 0.95
_FORGOTTEN = {"retention_similarity": 0.5}
"""Of the start; similarities move in any fine-tuning."""
_FORGOTTEN_FIGURE = 0.9


@dataclass(frozen=True)
class Facts:
    """What rules need to know of a run, beside its logs."""

    batch_size: int
    rising: int
    """Steps of warmup."""
    steps: int
    """Of the whole run."""
    chance: float | None
    """The loss at equal similarities; None where it has no such level."""
    start_scale: float
    largest_scale: float | None
    """What the scale is clamped to; None where it is not."""
    metric: str | None
    """By which weights are chosen."""
    sides: tuple[str, str] = ("image", "text")
    """Of the figures in metrics.jsonl: `image_accuracy`."""
    retention: str | None = None
    """Name of the figure in evaluations.jsonl that says what is left of what the model knew."""
    retention_start: float | None = None


class Watch:
    """Takes the logged rows as they come, and gives each finding once.

    Args:
        facts: of the run.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.found: list[Finding] = []
        self._rows: deque[Row] = deque(maxlen=_WINDOW)
        self._speeds: deque[Row] = deque(maxlen=_WINDOW)
        self._norms: deque[float] = deque(maxlen=200)
        self._evaluations: list[Row] = []
        self._seen = 0

    def step(self, row: Row, speed: Row | None) -> list[Finding]:
        """A line of metrics.jsonl, and the one of speed.jsonl that goes with it."""
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
        """A line of evaluations.jsonl."""
        self._evaluations.append(row)
        return self._new(self._of_evaluations(), row["step"])

    def _new(self, rules: Sequence[tuple[str, Callable[[], tuple[str, str] | None]]], step: int) -> list[Finding]:
        known = {finding.name for finding in self.found}
        new = []
        for name, rule in rules:
            said = rule() if name not in known else None
            if said is not None:
                new.append(Finding(name, "warning", *said, step))
        self.found += new
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
        """Whether the whole window lies behind the warmup, and behind the first tenth of a short run."""
        return self._rows[0]["step"] > max(self.facts.rising, min(50, self.facts.steps // 10))

    def _at_chance(self) -> tuple[str, str] | None:
        level, loss = self.facts.chance, self._mean("loss")
        if not level or not self._is_warm or loss is None or abs(loss - level) > _NEAR_CHANCE * level:
            return None
        # A margin loss may lie there on average while samples do find each other.
        accuracies = [self._mean(f"{side}_accuracy") for side in self.facts.sides]
        if any(own is not None and own > _BY_LUCK / self.facts.batch_size for own in accuracies):
            return None
        return (
            f"the loss is {loss:.3f}, as equal similarities give ({level:.3f}): no pair is told from another",
            "see that captions lie beside their own images (clipkit data preview, clipkit data check), then try an "
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
                    "lower optim.lr, lengthen optim.warmup, and look whether the samples differ (clipkit data preview)",
                )
        return None

    def _scale_at_cap(self) -> tuple[str, str] | None:
        cap = self.facts.largest_scale
        if cap is None or self.facts.start_scale > 0.95 * cap:  # a pretrained CLIP comes with its scale at the cap
            return None
        if not all(row.get("scale", 0.0) >= 0.999 * cap for row in self._rows):
            return None
        return (
            f"the scale has risen to its cap of {cap:.4g}: the batch is too easy to sort",
            "take a larger train.batch_size, more augmentation or fewer epochs",
        )

    def _scale_falls(self) -> tuple[str, str] | None:
        scales = [row["scale"] for row in self._rows if "scale" in row]
        if len(scales) < _WINDOW or scales[-1] > _FALLEN * self.facts.start_scale:
            return None
        if any(later > earlier for earlier, later in pairwise(scales)):
            return None
        return (
            f"the scale falls steadily, from {self.facts.start_scale:.4g} to {scales[-1]:.4g}: the model hedges",
            "many captions fit other images of the batch, or do not fit their own: look with clipkit data check, and "
            "lower optim.lr",
        )

    def _gradient_explodes(self) -> tuple[str, str] | None:
        earlier = list(self._norms)[:-_EVERY]
        usual = statistics.median(earlier)
        high = [norm for norm in list(self._norms)[-_EVERY:] if norm > _EXPLODED * usual]
        if len(high) < 3 or not self._is_warm:
            return None
        return (
            f"the gradient's norm is {max(high):.3g}, usually it was {usual:.3g}",
            "lower optim.lr, set optim.clip: 1.0, and take train.precision: bf16 or fp32 rather than fp16",
        )

    def _one_direction(self) -> tuple[str, str] | None:
        accuracies = {side: self._mean(f"{side}_accuracy") for side in self.facts.sides}
        known = {side: value for side, value in accuracies.items() if value is not None}
        if len(known) < 2 or not self._is_warm:
            return None
        (better, high), (worse, low) = sorted(known.items(), key=lambda own: -own[1])
        if high < max(0.2, 10 / self.facts.batch_size) or low > high / 4:
            return None
        return (
            f"in the batch {better} finds {worse} ({high:.0%} right), but not the other way round ({low:.0%})",
            f"many samples on the {worse} side are alike, or one tower hardly learns: look at the captions, and at "
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
            f"{share:.0%} of the time goes into waiting for data",
            "raise data.workers, or pack the images small once (clipkit data prepare)",
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
            f"{metric} was {best:.4f}, and in the last {_PATIENCE} evaluations at most {max(last):.4f}",
            "the best weights are kept; fewer epochs or a lower optim.lr would do (eval.patience stops by itself)",
        )

    def _forgetting(self) -> tuple[str, str] | None:
        name, start = self.facts.retention, self.facts.retention_start
        if name is None or start is None or start <= 0 or name not in self._evaluations[-1]:
            return None
        now = self._evaluations[-1][name]
        if now > _FORGOTTEN.get(name, _FORGOTTEN_FIGURE) * start:
            return None
        return (
            f"it forgets: {name} was {start:.3f} before the first step and is {now:.3f}",
            "lower optim.lr, tune fewer blocks (model.image.tune: last:4), or take weights between start and end "
            "(eval.interpolate: true, clipkit merge --alpha)",
        )


def replay(
    watch: Watch, metrics: Sequence[Row], speeds: Sequence[Row], evaluations: Sequence[Row]
) -> Iterator[Finding]:
    """The findings of logs that are there already, in the order in which they would have been said."""
    speed_of = {row["step"]: row for row in speeds}
    waiting = deque(evaluations)
    for row in metrics:
        yield from watch.step(row, speed_of.get(row["step"]))
        while waiting and waiting[0]["step"] <= row["step"]:
            yield from watch.evaluation(waiting.popleft())
    for row in waiting:
        yield from watch.evaluation(row)
