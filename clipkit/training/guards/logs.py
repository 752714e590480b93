"""Logs of a run and facts about the run, the inputs of the rules in guards/watch.py."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipkit.training.guards.batch_statistics import QUERIES

Row = Mapping[str, Any]

WINDOW = 20
"""Number of logged steps that a rule reads."""


@dataclass(frozen=True)
class Facts:
    """Facts about a run, e.g. its batch size, that the rules in guards/watch.py need in addition to the logs."""

    batch_size: int
    rising: int
    """Number of warmup steps."""
    steps: int
    """Number of steps of the whole run."""
    chance: float | None
    """Value of the loss when all similarities are equal; None if it is not a fixed number."""
    start_scale: float
    largest_scale: float | None
    """Upper limit of the scale; None if it is not limited."""
    metric: str | None
    """Metric that selects the best weights."""
    sides: tuple[str, str] = ("image", "text")
    """Prefixes of the statistics in metrics.jsonl, e.g. image in `image_accuracy`."""
    retention: str | None = None
    """Name of the retention metric in evaluations.jsonl."""
    retention_start: float | None = None
    """Retention before the first step."""
    validation_images: int = 0


class Logs:
    """Last 20 logged steps and all evaluations of a run, for the rules in guards/watch.py."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.rows: deque[Row] = deque(maxlen=WINDOW)
        self.speeds: deque[Row] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=200)
        self.evaluations: list[Row] = []

    def mean(self, name: str) -> float | None:
        """Return the mean of a value, e.g. "loss", over the last 20 logged steps; None if a step lacks the value."""
        values = [row[name] for row in self.rows if name in row]
        return statistics.fmean(values) if len(values) == len(self.rows) else None

    def matches_pairs(self, errors: float) -> bool:
        """Return whether the model matches the pairs of a batch better than by chance, in at least one direction.

        The mean accuracy of the last 20 logged steps must exceed chance by more than `errors` standard errors.
        """
        queries = min(self.facts.batch_size, QUERIES) * len(self.rows)
        chance = 1 / self.facts.batch_size
        limit = min(1.0, chance + errors * math.sqrt(chance * (1 - chance) / queries))
        accuracies = [self.mean(f"{side}_accuracy") for side in self.facts.sides]
        return any(accuracy is not None and accuracy > limit for accuracy in accuracies)

    @property
    def is_warm(self) -> bool:
        """True if the last 20 logged steps come after the warmup, and after the first min(50, steps / 10) steps."""
        return self.rows[0]["step"] > max(self.facts.rising, min(50, self.facts.steps // 10))
