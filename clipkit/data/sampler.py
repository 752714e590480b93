"""Which pairs meet in which batch: a function of the data, the batch size, the seed and the epoch; of nothing else."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.data.pairs import Pairs, Part
from clipkit.errors import DataError
from clipkit.seeds import mix

# So that the streams of one seed for different purposes are different streams.
_ORDER, _CAPTION, _STAND_IN, _SHARE = 0, 1, 4, 5


class Sample(NamedTuple):
    """One pair of one epoch: the epoch, the image's position, the caption's position."""

    epoch: int
    image: int
    caption: int


class EpochSampler:
    """Deals each epoch's permutation of the data into global batches.

    With `captions: one` each image comes once an epoch, with the caption that the image's own permutation names
    for this epoch. With `all` every caption comes once an epoch. What has a weight comes so many times an epoch: of
    one with 0.5 each half of the images comes in every other epoch. Never two of one image in a batch while that
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
        self._parts = (
            [Part(np.arange(len(pairs.images)), np.arange(len(pairs.captions)), 1.0)]
            if not pairs.parts
            else list(pairs.parts)
        )
        self._items = [part.images if captions == "one" else part.captions for part in self._parts]
        # By Hermite's identity, what `_dealt` deals of a part is never less.
        available = sum(
            math.floor(len(items) * part.weight + 1e-9) for part, items in zip(self._parts, self._items, strict=True)
        )
        if batch_size > available:
            what = "images (captions: one)" if captions == "one" else "captions"
            raise DataError(
                f"train.batch_size is {batch_size}, but {pairs.name} has {available} {what}; "
                f"set train.batch_size to at most {available}"
            )
        self.pairs = pairs
        self.captions = captions
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = available // batch_size
        # Captions of one image side by side, in the order of the image's permutation.
        keys = np.random.default_rng(mix(seed, _CAPTION)).random(len(pairs.captions))
        self._permuted = np.lexsort((keys, pairs.image_of_caption))
        self._count = np.bincount(pairs.image_of_caption, minlength=len(pairs.images))
        self._start = np.cumsum(self._count) - self._count

    def epoch(self, epoch: int) -> Iterator[list[Sample]]:
        """The global batches of one epoch, in order."""
        images, captions = self._order(epoch)
        for start in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            of_batch = zip(images[batch].tolist(), captions[batch].tolist(), strict=True)
            yield [Sample(epoch, image, caption) for image, caption in of_batch]

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's images and captions, one after the other."""
        generator = np.random.default_rng(mix(self.seed, _ORDER, epoch))
        times: NDArray[np.int64] | int = epoch
        if self.pairs.parts:
            dealt = [self._dealt(part, epoch) for part in range(len(self._parts))]
            items, times = (np.concatenate(own) for own in zip(*dealt, strict=True))
            order = generator.permutation(len(items))
            items, times = items[order], times[order]
        else:
            items = generator.permutation(len(self._items[0]))
        if self.captions == "one":
            images, captions = items, self._permuted[self._start[items] + times % self._count[items]]
        else:
            images, captions = self.pairs.image_of_caption[items], items
        if (self.captions == "all" or self.pairs.parts) and len(np.unique(images)) < len(images):
            rows = _apart(list(zip(images.tolist(), captions.tolist(), strict=True)), self.batch_size)
            images, captions = np.array(rows, dtype=np.int64).T
        return images, captions

    def _dealt(self, part: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images, or captions, that come in this epoch, and how many times each had come before.

        By the end of epoch e an item has come ⌊w (e + 1) + r / n⌋ times, where r is its rank among the n of its part.
        """
        items, weight = self._items[part], self._parts[part].weight
        if weight == 1:
            return items, np.full(len(items), epoch)
        offset = np.random.default_rng(mix(self.seed, _SHARE, part)).permutation(len(items)) / max(1, len(items))
        before, after = (np.floor(weight * end + offset + 1e-9).astype(np.int64) for end in (epoch, epoch + 1))
        count = after - before
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(items, count), np.repeat(before, count) + nth

    def stand_in(self, sample: Sample, attempt: int) -> Sample:
        """What takes the place of a sample whose image cannot be had: another image with its own caption.

        A function of the seed, the sample and the attempt (1, 2…) alone, so that every process and every worker, at
        any time, finds the same one.
        """
        image = mix(self.seed, _STAND_IN, *sample, attempt) % len(self.pairs.images)
        caption = self._permuted[self._start[image] + sample.epoch % self._count[image]]
        return Sample(sample.epoch, image, int(caption))

    def slices(self, first_step: int, last_step: int, rows: slice) -> Iterator[list[Sample]]:
        """One process's `rows` of the global batches from `first_step` up to before `last_step`, across epochs."""
        step = first_step
        while step < last_step:
            epoch, done = divmod(step, self.steps_per_epoch)
            for batch in islice(self.epoch(epoch), done, done + last_step - step):
                yield batch[rows]
                step += 1


def _apart(rows: list[tuple[int, int]], batch_size: int) -> list[tuple[int, int]]:
    """Deal rows into batches in order, an image at most once a batch; a second row of it waits for the next batch.

    An image with as many rows left as there are batches goes first: put off, two of its rows would meet at the end.
    """
    rows_of: dict[int, deque[int]] = {}
    for image, row in rows:
        rows_of.setdefault(image, deque()).append(row)
    with_left: dict[int, set[int]] = defaultdict(set)
    for image, own in rows_of.items():
        with_left[len(own)].add(image)
    coming = deque(image for image, _ in rows)
    ahead: Counter[int] = Counter()  # rows taken before their turn came
    waiting: dict[int, int] = {}  # rows whose turn has passed, by image, in order
    dealt: list[tuple[int, int]] = []

    def take(image: int) -> None:
        left = len(rows_of[image])
        with_left[left].discard(image)
        with_left[left - 1].add(image)
        dealt.append((image, rows_of[image].popleft()))

    for batches_left in range(-(-len(rows) // batch_size), 0, -1):
        start = len(dealt)
        room = min(batch_size, len(rows) - start)
        seen: set[int] = set()
        urgent = sorted(image for left, images in with_left.items() if left >= batches_left for image in images)
        for image in urgent[:room]:
            seen.add(image)
            take(image)
            if waiting.get(image):
                waiting[image] -= 1
            else:
                ahead[image] += 1
        for image in [image for image in islice(waiting, batch_size) if image not in seen and waiting[image]]:
            if len(dealt) - start == room:
                break
            seen.add(image)
            take(image)
            waiting[image] -= 1
        waiting = {image: count for image, count in waiting.items() if count}
        while len(dealt) - start < room and coming:
            image = coming.popleft()
            if ahead[image]:
                ahead[image] -= 1
            elif image in seen:
                waiting[image] = waiting.get(image, 0) + 1
            else:
                seen.add(image)
                take(image)
        # Only images that are in the batch already have rows left: they cannot be kept apart any more.
        while len(dealt) - start < room:
            image = next(image for image, count in waiting.items() if count)
            take(image)
            waiting[image] -= 1
    return dealt
