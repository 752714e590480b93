"""Which pairs meet in which batch: a function of the data, the batch size, the seed and the epoch; of nothing else."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from clipkit.data.pairs import Pairs
from clipkit.errors import DataError
from clipkit.seeds import mix

# So that the streams of one seed for different purposes are different streams.
_ORDER, _CAPTION = 0, 1


class Sample(NamedTuple):
    """One pair of one epoch: the epoch, the picture's position, the caption's position."""

    epoch: int
    image: int
    caption: int


class EpochSampler:
    """Deals each epoch's permutation of the data into global batches.

    With `captions: one` each picture comes once an epoch, with the caption that the picture's own permutation names
    for this epoch. With `all` every caption comes once an epoch, and never two of one picture in a batch while that
    can be avoided. The last partial batch is dropped.

    Args:
        pairs: the data.
        captions: one or all.
        batch_size: pairs in a global batch.
        seed: the run's.

    Raises:
        DataError: there is not one full batch.
    """

    def __init__(self, pairs: Pairs, captions: str, batch_size: int, seed: int) -> None:
        available = len(pairs.pictures) if captions == "one" else len(pairs.captions)
        if batch_size > available:
            what = "pictures (captions: one)" if captions == "one" else "captions"
            raise DataError(
                f"train.batch_size is {batch_size}, but {pairs.name} has {available} {what}; "
                f"set train.batch_size to at most {available}"
            )
        self.pairs = pairs
        self.captions = captions
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = available // batch_size
        # Captions of one picture side by side, in the order of the picture's permutation.
        keys = np.random.default_rng(mix(seed, _CAPTION)).random(len(pairs.captions))
        self._permuted = np.lexsort((keys, pairs.image_of_caption))
        self._count = np.bincount(pairs.image_of_caption, minlength=len(pairs.pictures))
        self._start = np.cumsum(self._count) - self._count

    def epoch(self, epoch: int) -> Iterator[list[Sample]]:
        """The global batches of one epoch, in order."""
        generator = np.random.default_rng(mix(self.seed, _ORDER, epoch))
        if self.captions == "one":
            images = generator.permutation(len(self.pairs.pictures))
            captions = self._permuted[self._start[images] + epoch % self._count[images]]
            rows = list(zip(images.tolist(), captions.tolist(), strict=True))
        else:
            captions = generator.permutation(len(self.pairs.captions))
            images = self.pairs.image_of_caption[captions]
            rows = _apart(list(zip(images.tolist(), captions.tolist(), strict=True)), self.batch_size)
        for start in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            yield [Sample(epoch, image, caption) for image, caption in rows[start : start + self.batch_size]]

    def slices(self, first_step: int, last_step: int, rows: slice) -> Iterator[list[Sample]]:
        """One process's `rows` of the global batches from `first_step` up to before `last_step`, across epochs."""
        step = first_step
        while step < last_step:
            epoch, done = divmod(step, self.steps_per_epoch)
            for batch in islice(self.epoch(epoch), done, done + last_step - step):
                yield batch[rows]
                step += 1


def _apart(rows: list[tuple[int, int]], batch_size: int) -> list[tuple[int, int]]:
    """Deal rows into batches in order; one whose picture is already in the batch waits for the next batch."""
    dealt: list[tuple[int, int]] = []
    waiting: deque[tuple[int, int]] = deque()
    coming = deque(rows)
    while coming or waiting:
        batch: list[tuple[int, int]] = []
        seen: set[int] = set()
        passed: deque[tuple[int, int]] = deque()
        while len(batch) < batch_size and (waiting or coming):
            row = waiting.popleft() if waiting else coming.popleft()
            if row[0] in seen:
                passed.append(row)
            else:
                seen.add(row[0])
                batch.append(row)
        # Only copies of pictures that are in the batch are left: they cannot be kept apart any more.
        while len(batch) < batch_size and passed:
            batch.append(passed.popleft())
        waiting = passed + waiting
        dealt += batch
    return dealt
