"""Progress of a suite: items that are still to be encoded, speed, and time left."""

import time
from collections.abc import Mapping
from typing import Any

from clipkit.embedding.bars import Bar, Bars
from clipkit.findings import duration

KINDS = ("images", "captions")


class Remaining(Bars):
    """Work that one model has left in a suite.

    The time left counts encoding only, at the speed measured so far.

    Args:
        shown: show progress bars on the terminal.

    Example:
        >>> remaining = Remaining(shown=False)
        >>> remaining.begin({"images": 10, "captions": 0}, after={"images": 30, "captions": 0})
        >>> bar = remaining.start("images", 10)
        >>> bar.update(10)
        >>> remaining.left("images"), remaining.speed("captions")
        (30, None)
    """

    def __init__(self, shown: bool) -> None:
        super().__init__(shown)
        self.encoded = dict.fromkeys(KINDS, 0)
        self.busy = dict.fromkeys(KINDS, 0.0)
        """Seconds of encoding."""
        self.begin(self.encoded, self.encoded)

    def begin(self, new: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Begin a dataset.

        Args:
            new: number of items to encode by kind.
            after: number of items to encode in all later datasets, by kind.
        """
        self._new = dict(new)
        self._after = dict(after)
        self._before = dict(self.encoded), dict(self.busy)

    def start(self, kind: str, total: int) -> Bar:
        """Return a bar that counts the items of a kind."""
        self._new[kind] = total  # replaces the estimate that `begin` received
        return _SuiteBar(self, kind, total, shown=self.shown)

    def count(self, kind: str, items: int, seconds: float) -> None:
        """Count encoded items, and the seconds they took."""
        self.encoded[kind] += items
        self.busy[kind] += seconds
        self._new[kind] = max(0, self._new[kind] - items)

    def left(self, kind: str) -> int:
        """Return the number of items of a kind that are still to be encoded."""
        return self._new[kind] + self._after[kind]

    def speed(self, kind: str) -> float | None:
        """Return items per second; None before an item of this kind was encoded."""
        return self.encoded[kind] / self.busy[kind] if self.encoded[kind] and self.busy[kind] else None

    def seconds_left(self) -> float | None:
        """Return the seconds until everything is encoded; None if a speed is unknown."""
        total = 0.0
        for kind in KINDS:
            speed = self.speed(kind)
            if self.left(kind) and speed is None:
                return None
            total += self.left(kind) / (speed or 1)
        return total

    def summary(self) -> str:
        """Return what was encoded for this dataset, the speed, and the time left in total; "" if nothing was encoded.

        Example:
            >>> remaining = Remaining(shown=False)
            >>> remaining.begin({"images": 10, "captions": 0}, after={"images": 30, "captions": 0})
            >>> remaining.count("images", 10, seconds=5.0)
            >>> remaining.summary()
            '10 images encoded at 2/s; 15 s left in total'
        """
        parts = []
        encoded, busy = self._before
        for kind in KINDS:
            items, seconds = self.encoded[kind] - encoded[kind], self.busy[kind] - busy[kind]
            if items:
                parts.append(f"{items:,} {kind} encoded at {items / max(seconds, 1e-9):,.0f}/s")
        left = self.seconds_left()
        return f"{', '.join(parts)}; {'?' if left is None else duration(round(left))} left in total" if parts else ""


class _SuiteBar(Bar):
    """Bar of one dataset that also shows the time left for all datasets."""

    def __init__(self, remaining: Remaining, kind: str, total: int, **options: Any) -> None:
        super().__init__(kind, total, **options)
        self.remaining = remaining
        self._last = time.perf_counter()

    def update(self, count: int) -> None:
        before, now = self.done, time.perf_counter()
        super().update(count)
        self.remaining.count(self.kind, self.done - before, now - self._last)
        self._last = now
        left = self.remaining.seconds_left()
        self.note("" if left is None else f"all: {duration(round(left))} left")
