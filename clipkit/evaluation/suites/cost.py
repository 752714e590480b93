"""Cost of evaluating one model on a suite: images and captions to encode, time, and disk space."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.data.sequences import evenly_spaced
from clipkit.embedding.cached import readable_size
from clipkit.embedding.features import Features, string_hashes
from clipkit.errors import UserError
from clipkit.evaluation.suites.corruptions import Corrupted
from clipkit.evaluation.suites.entries import DataSet, Suite
from clipkit.evaluation.suites.progress import KINDS, Remaining
from clipkit.evaluation.tasks.task import TaskData, task_of
from clipkit.findings import counted, duration
from clipkit.images import Stored
from clipkit.models.absent import is_absent
from clipkit.models.devices import is_accelerator

# The speed is measured in one untimed round, and then in larger and larger rounds until they take this many seconds.
_SECONDS = 3.0
_ROUNDS = {"images": (8, 16, 32, 64, 128), "captions": (32, 128, 256, 512)}
_ACCELERATOR_ROUNDS = dict.fromkeys(KINDS, (256, 1024, 2048))
_KEY = 32  # bytes of a key in the cache
_FLOAT = 4


@dataclass
class Work:
    """Numbers of images and captions that a model must encode for one dataset.

    Args:
        entry: the dataset.
        state: "to evaluate", "measured before", "unavailable" or "not downloaded". For a dataset that is not
            downloaded, the numbers come from the suite's file.
        total: numbers of images and captions (or prompts) in the dataset.
        new: numbers of images and captions that are neither cached nor part of an earlier dataset of the suite.
    """

    entry: DataSet
    state: str
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    new: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


class Cost:
    """Cost of evaluating one model on a suite.

    Args:
        suite: the datasets.
        opened: data of each dataset that is on this machine, by name of the dataset.
        kept: names of datasets that already have a result.
        unavailable: names of datasets that cannot be evaluated.
        features: encoder of the model.
    """

    def __init__(
        self,
        suite: Suite,
        opened: Mapping[str, TaskData],
        kept: set[str],
        unavailable: set[str],
        features: Features,
    ) -> None:
        self.features = features
        self.works: list[Work] = []
        self.width = 0
        self._items: dict[str, dict[bytes, Any]] = {kind: {} for kind in KINDS}
        for entry in suite.datasets:
            if entry.name in kept:
                self.works.append(Work(entry, "measured before"))
            elif entry.name in unavailable:
                self.works.append(Work(entry, "unavailable"))
            elif entry.name in opened:
                self.works.append(self._work(entry, opened[entry.name]))
            else:
                counts = {"images": entry.images or 0, "captions": entry.captions or 0}
                self.works.append(Work(entry, "not downloaded", counts, dict(counts)))

    def _work(self, entry: DataSet, data: TaskData) -> Work:
        work = Work(entry, "to evaluate")
        model, texts = self.features.model, task_of(entry.task).texts
        parts: list[tuple[str, Any, Sequence[Any], list[bytes]]] = []
        with suppress(UserError):  # invalid data and missing towers are reported when the dataset is measured
            if not is_absent(model.image):
                parts += [("images", model.image, part, self._hashes(entry, part)) for part in data.images]
            if texts is not None and not is_absent(model.text):
                strings = texts(data)
                parts.append(("captions", model.text, strings, string_hashes(strings)))
        for kind, tower, items, keys in parts:
            known = self._items[kind]
            fresh = [position for position in self.features.missing(tower, keys) if keys[position] not in known]
            known.update({keys[position]: items[position] for position in fresh})
            work.total[kind] += len(items)
            work.new[kind] += len(fresh)
        return work

    def _hashes(self, entry: DataSet, images: Sequence[Path | Stored]) -> list[bytes]:
        """Return one key per image, for looking up its features in the cache.

        Keys of corrupted images are never in the cache, because their correct keys would require reading all images.
        """
        if entry.corruption is None:
            return self.features.content_hashes(images)
        return [hashlib.sha256(f"{entry.corruption} {image}".encode()).digest() for image in images]

    def measure(self, remaining: Remaining) -> None:
        """Measure the encoding speed of the model on some images and captions that are not cached.

        The features are then cached, so the evaluation does not compute them again.

        Args:
            remaining: receives the measured speed.
        """
        sizes = _ACCELERATOR_ROUNDS if is_accelerator(self.features.model.device) else _ROUNDS
        for kind, encode in (("images", self.features.images), ("captions", self.features.texts)):
            found = list(self._items[kind].values())
            # Features of a corrupted image may be in the cache; encoding it would then take no time.
            items = [item for item in found if not isinstance(item, Corrupted)] or found
            rounds = sizes[kind]
            chosen = evenly_spaced(len(items), sum(rounds)) if items else []
            begun = time.perf_counter()
            for number, size in enumerate(rounds):
                part, chosen = chosen[:size], chosen[size:]
                took = time.perf_counter() - begun
                if not part or self.features.processes.any(number > 1 and took > _SECONDS)[0]:
                    break
                started = time.perf_counter()
                try:
                    self.width = encode([items[k] for k in part]).shape[1]
                except UserError:  # a broken image, which is reported when its dataset is measured
                    continue
                if number:
                    remaining.count(kind, len(part), time.perf_counter() - started)
                self._done(kind, len(part))

    def _done(self, kind: str, left: int) -> None:
        for work in self.works:  # subtract from the first datasets: only the sums matter
            if work.state == "to evaluate":
                taken = min(left, work.new[kind])
                work.new[kind] -= taken
                left -= taken

    def after(self, position: int) -> dict[str, int]:
        """Return how many images and captions must be encoded for the dataset at `position` and all later datasets."""
        return {kind: sum(work.new[kind] for work in self.works[position:]) for kind in KINDS}

    def lines(self, remaining: Remaining) -> list[str]:
        """Return the cost as lines of text: the total, then one line per dataset that must be evaluated.

        Args:
            remaining: contains the measured speed.
        """
        lines = []
        for work in self.works:
            if work.state in ("to evaluate", "not downloaded"):
                seconds = _seconds(work.new, remaining)
                about = "" if seconds is None else f", about {duration(seconds)}"
                where = " after the download (numbers from the suite's file)" if work.state == "not downloaded" else ""
                lines.append(f"  {work.entry.name}: {_counts(work.total)}; {_counts(work.new)} to encode{where}{about}")
        new = self.after(0)
        speeds = [f"{speed:,.0f} {kind}/s" for kind in KINDS if (speed := remaining.speed(kind)) is not None]
        seconds = _seconds(new, remaining)
        states = [work.state for work in self.works]
        found = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        split = f" ({', '.join(found)})" if set(states) != {"to evaluate"} else ""
        disk = sum(new.values()) * (self.width * _FLOAT + _KEY)
        total = f"{_counts(new)} to encode in {counted(len(states), 'dataset')}{split}"
        if speeds:
            total += f"; measured here: {', '.join(speeds)}"
        if seconds is not None:
            total += f"; about {duration(seconds)} for encoding, without downloads and metrics"
        if disk:
            total += f"; {readable_size(disk)} on disk for the features"
        return [f"{self.features.model.name}: {total}", *lines]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(counted(counts[kind], kind.removesuffix("s")) for kind in KINDS)


def _seconds(new: Mapping[str, int], remaining: Remaining) -> float | None:
    total = 0.0
    for kind in KINDS:
        speed = remaining.speed(kind)
        if new[kind] and speed is None:
            return None
        total += new[kind] / (speed or 1)
    return total
