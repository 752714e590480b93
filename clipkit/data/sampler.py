"""Order of the samples of a run. It depends only on the data, the batch size, the seed and the epoch."""

import hashlib
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

# Numbers of this module's random streams; each module has different numbers.
_ORDER, _CAPTION, _REPLACEMENT, _SHARE = 0, 1, 4, 5


class HardGroups(NamedTuple):
    """Hard negatives of each image, for groups of similar images."""

    neighbors: NDArray[np.int64]
    """(N, K) positions of the hard negatives of each image, as `hard_neighbors` returns them."""
    size: int
    """Maximum number of images in a group."""

    @property
    def fingerprint(self) -> str:
        """Hash of `neighbors`."""
        return hashlib.sha256(self.neighbors.astype("<i8").tobytes()).hexdigest()


class Sample(NamedTuple):
    """One pair in one epoch. `image` and `caption` are positions in the data."""

    epoch: int
    image: int
    caption: int


class EpochSampler:
    """Splits the data into global batches, with a new random order in each epoch.

    With captions "one", each image occurs once per epoch, each time with its next caption. With captions
    "all", each caption occurs once per epoch. A source with another weight than 1 occurs that many times per epoch:
    with weight 0.5, half of its images occur in one epoch and the other half in the next. If possible, a batch contains
    an image only once. The last partial batch is dropped.

    Args:
        pairs: training data.
        captions: "one" or "all".
        batch_size: pairs in a global batch.
        seed: seed of the run.
        hard: hard negatives, to put similar images into the same batch; None: all batches are random. Allowed only with
            captions "one" and a single source.

    Raises:
        DataError: the data has fewer samples than a batch.
    """

    def __init__(self, pairs: Pairs, captions: str, batch_size: int, seed: int, hard: HardGroups | None = None) -> None:
        everything = Part(np.arange(len(pairs.images)), np.arange(len(pairs.captions)), 1.0)
        self._parts = pairs.parts or [everything]
        self._items = [part.images if captions == "one" else part.captions for part in self._parts]
        # A lower bound: `_items_of_epoch` never returns fewer items of a source (Hermite's identity).
        available = sum(
            math.floor(len(items) * part.weight + 1e-9) for part, items in zip(self._parts, self._items, strict=True)
        )
        if batch_size > available:
            what = "images (data.captions: one uses one caption per image)" if captions == "one" else "captions"
            raise DataError(
                f"train.batch_size is {batch_size}, but {pairs.name} has only {available} {what}; "
                f"set train.batch_size to at most {available}"
            )
        self.pairs = pairs
        self.captions = captions
        self.batch_size = batch_size
        self.seed = seed
        self.hard = hard
        self.steps_per_epoch = available // batch_size
        # Captions sorted by image; the captions of an image are in random order.
        keys = np.random.default_rng(mix(seed, _CAPTION)).random(len(pairs.captions))
        self._permuted = np.lexsort((keys, pairs.image_of_caption))
        self._count = np.bincount(pairs.image_of_caption, minlength=len(pairs.images))
        self._start = np.cumsum(self._count) - self._count

    def epoch(self, epoch: int) -> Iterator[list[Sample]]:
        """Yield the global batches of one epoch."""
        images, captions = self._order(epoch)
        for start in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            rows = zip(images[batch].tolist(), captions[batch].tolist(), strict=True)
            yield [Sample(epoch, image, caption) for image, caption in rows]

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the images and captions of an epoch, in the order of the samples."""
        generator = np.random.default_rng(mix(self.seed, _ORDER, epoch))
        of_parts = [self._items_of_epoch(part, epoch) for part in range(len(self._parts))]
        items, times = (np.concatenate(arrays) for arrays in zip(*of_parts, strict=True))
        order = generator.permutation(len(items))
        if self.hard is not None:  # hard negatives need a single source: items are all images, in order
            from clipkit.data.hard_batches import grouped  # imported here, because it imports torch

            order = grouped(order, self.hard.neighbors, self.hard.size, generator)
        items, times = items[order], times[order]
        if self.captions == "one":
            images, captions = items, self._permuted[self._start[items] + times % self._count[items]]
        else:
            images, captions = self.pairs.image_of_caption[items], items
        if np.bincount(images).max() > 1:
            rows = _keep_duplicates_apart(list(zip(images.tolist(), captions.tolist(), strict=True)), self.batch_size)
            images, captions = np.array(rows, dtype=np.int64).T
        return images, captions

    def _items_of_epoch(self, part: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the items (images or captions) of one source in an epoch, and how often each occurred before.

        By the end of epoch e, an item has occurred ⌊w (e + 1) + r / n⌋ times. Here w is the weight of the source, n is
        the number of its items, and r is the item's random rank.
        """
        items, weight = self._items[part], self._parts[part].weight
        if weight == 1:
            return items, np.full(len(items), epoch)
        offset = np.random.default_rng(mix(self.seed, _SHARE, part)).permutation(len(items)) / max(1, len(items))
        before, after = (np.floor(weight * end + offset + 1e-9).astype(np.int64) for end in (epoch, epoch + 1))
        count = after - before
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(items, count), np.repeat(before, count) + nth

    def replacement(self, sample: Sample, attempt: int) -> Sample:
        """Return a random sample to replace a sample whose image is missing or unreadable.

        The result depends only on the seed, the sample and the attempt (1, 2, …).
        """
        image = mix(self.seed, _REPLACEMENT, *sample, attempt) % len(self.pairs.images)
        caption = self._permuted[self._start[image] + sample.epoch % self._count[image]]
        return Sample(sample.epoch, image, int(caption))

    def slices(self, first_step: int, last_step: int, rows: slice) -> Iterator[list[Sample]]:
        """Yield the given rows of each global batch, for the steps `first_step` to `last_step` − 1."""
        step = first_step
        while step < last_step:
            epoch, done = divmod(step, self.steps_per_epoch)
            for batch in islice(self.epoch(epoch), done, done + last_step - step):
                yield batch[rows]
                step += 1


def _keep_duplicates_apart(rows: list[tuple[int, int]], batch_size: int) -> list[tuple[int, int]]:
    """Reorder rows (image, caption) so that each batch contains an image at most once, if possible.

    If a batch already contains the image of a row, the row moves to a later batch. If an image has as many remaining
    rows as there are remaining batches, the next batch gets one of these rows.
    """
    rows_of: dict[int, deque[int]] = {}
    for image, row in rows:
        rows_of.setdefault(image, deque()).append(row)
    with_left: dict[int, set[int]] = defaultdict(set)
    for image, waiting_rows in rows_of.items():
        with_left[len(waiting_rows)].add(image)
    coming = deque(image for image, _ in rows)
    ahead: Counter[int] = Counter()  # rows that were moved to an earlier batch
    waiting: dict[int, int] = {}  # rows that were postponed, by image, in order
    ordered: list[tuple[int, int]] = []

    def take(image: int) -> None:
        left = len(rows_of[image])
        with_left[left].discard(image)
        with_left[left - 1].add(image)
        ordered.append((image, rows_of[image].popleft()))

    for batches_left in range(-(-len(rows) // batch_size), 0, -1):
        start = len(ordered)
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
            if len(ordered) - start == room:
                break
            seen.add(image)
            take(image)
            waiting[image] -= 1
        waiting = {image: count for image, count in waiting.items() if count}
        while len(ordered) - start < room and coming:
            image = coming.popleft()
            if ahead[image]:
                ahead[image] -= 1
            elif image in seen:
                waiting[image] = waiting.get(image, 0) + 1
            else:
                seen.add(image)
                take(image)
        # All remaining rows are of images that are in the batch already, so duplicates cannot be avoided.
        while len(ordered) - start < room:
            image = next(image for image, count in waiting.items() if count)
            take(image)
            waiting[image] -= 1
    return ordered
