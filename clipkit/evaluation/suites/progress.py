"""Progress of a suite: images and captions that remain to be encoded, encoding speed, and time left."""

import time
from collections.abc import Mapping
from typing import Any

from clipkit.embedding.bars import Bar, Bars
from clipkit.findings import duration

KINDS = ("images", "captions")


class Remaining(Bars):
    """Numbers of images and captions that one model must still encode for a suite, and the time left.

    The time left includes only encoding, at the mean speed so far.

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
            new: numbers of images and captions to encode for this dataset.
            after: the same numbers for all later datasets together.
        """
        self._new = dict(new)
        self._after = dict(after)
        self._before = dict(self.encoded), dict(self.busy)

    def start(self, kind: str, total: int) -> Bar:
        """Return a progress bar for encoding the current dataset.

        Args:
            kind: "images" or "captions".
            total: number of images or captions to encode.
        """
        self._new[kind] = total  # replaces the estimate that `begin` received
        return _SuiteBar(self, kind, total, shown=self.shown)

    def count(self, kind: str, items: int, seconds: float) -> None:
        """Record that some images or captions were encoded.

        Args:
            kind: "images" or "captions".
            items: number of encoded images or captions.
            seconds: time that the encoding took.
        """
        self.encoded[kind] += items
        self.busy[kind] += seconds
        self._new[kind] = max(0, self._new[kind] - items)

    def left(self, kind: str) -> int:
        """Return how many images or captions remain to be encoded."""
        return self._new[kind] + self._after[kind]

    def speed(self, kind: str) -> float | None:
        """Return the mean number of images or captions encoded per second; None if none were encoded yet."""
        return self.encoded[kind] / self.busy[kind] if self.encoded[kind] and self.busy[kind] else None

    def seconds_left(self) -> float | None:
        """Return the estimated seconds until everything is encoded; None if a necessary speed is unknown."""
        total = 0.0
        for kind in KINDS:
            speed = self.speed(kind)
            if self.left(kind) and speed is None:
                return None
            total += self.left(kind) / (speed or 1)
        return total

    def summary(self) -> str:
        """Describe the encoding for the current dataset: number of items, speed, and time left for the suite.

        The text is empty if nothing was encoded.

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
    """Progress bar of one dataset that also shows the time left for the suite."""

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
