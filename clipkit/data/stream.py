"""Loader for a stream. The order of the samples depends only on the seed and the numbers of processes and workers.

In each epoch, the shards are shuffled and distributed to the loader workers of all processes. The shards of one worker
are called a lane. A worker reads its lane shard by shard, and shuffles the samples within a buffer. An epoch ends after
`data.samples` samples, and the next epoch starts again with all shards.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipkit.data.batch import Assembly, Batch, BatchMemory, InputMaker, rows_of
from clipkit.data.shared_memory import Packed, packed, shared_zeros, unpacked
from clipkit.data.slots import Slots, Stack, slots_for
from clipkit.data.sources.streams import Stream, StreamSample, identity_of
from clipkit.data.workers import lost_workers, start_worker
from clipkit.errors import DataError
from clipkit.seeds import mix

_STREAM, _CAPTION, _REPLACEMENT = 6, 7, 8  # numbers of this module's random streams; each module has different numbers
_CHUNK = 64
# Each worker prepares at least _AHEAD chunks in advance; all workers together prepare _BATCHES_AHEAD batches.
_AHEAD = 4
_BATCHES_AHEAD = 2
_BUFFER = 1000
"""Number of samples, with their image files, in the shuffle buffer of each loader worker."""


@dataclass(frozen=True)
class Stretch:
    """Steps `first_step` to `last_step` − 1 of a run, and the rows of each global batch that this process handles."""

    first_step: int
    last_step: int
    rows: slice
    steps_per_epoch: int


class StreamSampler:
    """Divides a run on a stream into steps. The samples of each step are chosen later, by `stream_loader`.

    Args:
        samples: pairs per epoch.
        batch_size: pairs in a global batch.

    Raises:
        DataError: an epoch has fewer samples than a batch.
    """

    replacement = None
    """None, because `stream_loader` replaces unreadable images itself, by other images of the same chunk."""

    def __init__(self, samples: int, batch_size: int) -> None:
        if batch_size > samples:
            raise DataError(
                f"train.batch_size is {batch_size}, but data.samples is only {samples}; set train.batch_size "
                "to at most "
                f"{samples}"
            )
        self.steps_per_epoch = samples // batch_size

    def slices(self, first_step: int, last_step: int, rows: slice) -> Stretch:
        """Return the steps `first_step` to `last_step` − 1, with the rows that this process handles."""
        return Stretch(first_step, last_step, rows, self.steps_per_epoch)


class _Pair(NamedTuple):
    image_id: int
    caption: str


class _Lane(IterableDataset[Batch | Packed | int | DataError]):
    """Dataset that yields the chunks (parts of batches) of this process. Each loader worker yields different samples.

    When a run resumes, chunks that were already trained on are not decoded. For such a chunk, the dataset yields the
    number of rows.
    """

    def __init__(
        self, stream: Stream, maker: InputMaker, seed: int, process: tuple[int, int], slots: Slots | None
    ) -> None:
        self.stream = stream
        self.maker = replace(maker, texts=dict.fromkeys(maker.texts, attrgetter("caption")), store=None)
        self.seed = seed
        self.process = process
        self.slots = slots
        self.max_pixels = Image.MAX_IMAGE_PIXELS
        self.start = shared_zeros(2)
        """Epoch, and the number of rows of this epoch that this process has already trained on."""

    def __iter__(self) -> Iterator[Batch | Packed | int | DataError]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        index, count = self.process
        epoch, done = self.start.tolist()
        if self.slots is not None:
            self.slots.free_all()  # chunks of the previous epoch that were not used
        for turn, chunk in enumerate(self._chunks(epoch, index * workers + number, count * workers), 1):
            if isinstance(chunk, DataError):
                yield chunk
                return
            # Workers take turns; after this turn, all of them have returned at most turn * workers * _CHUNK rows.
            yield len(chunk) if turn * workers * _CHUNK <= done else self._batch(chunk, epoch)

    def _chunks(self, epoch: int, lane: int, lanes: int) -> Iterator[list[StreamSample] | DataError]:
        samples = self._shuffled(self._samples(epoch, lane, lanes), epoch, lane)
        try:
            while chunk := list(islice(samples, _CHUNK)):
                yield chunk
        except DataError as error:
            yield error

    def _samples(self, epoch: int, lane: int, lanes: int) -> Iterator[StreamSample]:
        parts = self.stream.parts
        order = np.random.default_rng(mix(self.seed, _STREAM, epoch)).permutation(len(parts)).tolist()
        if len(parts) >= lanes:
            for part in order[lane::lanes]:
                yield from self.stream.samples(parts[part])
            return
        # If there are fewer shards than lanes, each lane reads all shards and keeps every n-th sample.
        samples = (sample for part in order for sample in self.stream.samples(parts[part]))
        yield from islice(samples, lane, None, lanes)

    def _shuffled(self, samples: Iterator[StreamSample], epoch: int, lane: int) -> Iterator[StreamSample]:
        generator = np.random.default_rng(mix(self.seed, _STREAM, epoch, lane))
        buffer = list(islice(samples, _BUFFER))
        for sample in samples:
            index = int(generator.integers(len(buffer)))
            yield buffer[index]
            buffer[index] = sample
        for index in generator.permutation(len(buffer)).tolist():
            yield buffer[index]

    def _batch(self, samples: list[StreamSample], epoch: int) -> Batch | Packed | DataError:
        """Convert samples to a chunk, or return a DataError if no image is readable.

        A sample with an unreadable image is replaced by another sample of the chunk.
        """
        bad: dict[int, str] = {}
        sound: list[int] = []
        stack = Stack(len(samples), self.slots)
        for index, sample in enumerate(samples):
            try:
                stack.put(index, self.maker.of_image(sample.image, epoch, sample.identity))
                sound.append(index)
            except DataError as error:
                bad[sample.identity] = str(error)
        if not sound:
            return DataError(
                f"{self.stream.name}: none of {len(samples)} images can be decoded (reason for the first: "
                f"{next(iter(bad.values()))}); check the shards"
            )
        chosen = list(range(len(samples)))
        for index in set(chosen).difference(sound):
            chosen[index] = sound[mix(self.seed, _REPLACEMENT, samples[index].identity) % len(sound)]
            stack.repeat(index, chosen[index])
        pairs = [_Pair(samples[index].identity, self._caption(samples[index], epoch)) for index in chosen]
        image_ids = torch.tensor([pair.image_id for pair in pairs])
        caption_ids = torch.tensor([identity_of(pair.caption) for pair in pairs])
        return packed(self.maker.batch(pairs, stack, (image_ids, caption_ids, image_ids), bad))

    def _caption(self, sample: StreamSample, epoch: int) -> str:
        """Return one caption of a sample. The next epoch uses the next caption."""
        return sample.captions[(mix(self.seed, _CAPTION, sample.identity) + epoch) % len(sample.captions)]


def stream_loader(
    stream: Stream,
    stretch: Stretch,
    maker: InputMaker,
    workers: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    memory: BatchMemory | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of a stream. A batch contains only the rows that this process handles.

    Args:
        stream: the data.
        stretch: steps to load.
        maker: object that converts samples to inputs. The functions in its `texts` are not called: all text features
            use the caption.
        workers: loader processes; 0 loads in this process.
        seed: seed of the run.
        process: index of this process, and number of processes.
        memory: memory for the batches; None: new tensors on the CPU.

    Raises:
        DataError: the stream cannot be read, or ends before the epoch does.
    """
    size = stretch.rows.stop - stretch.rows.start
    ahead = max(_AHEAD, -(-_BATCHES_AHEAD * size // (_CHUNK * max(1, workers))))
    slots, ahead = slots_for(maker.example() if workers else {}, _CHUNK, workers, ahead)
    lane = _Lane(stream, maker, seed, process, slots)
    loader: DataLoader[Batch | Packed | int | DataError] = DataLoader(
        lane,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    step = stretch.first_step
    while step < stretch.last_step:
        epoch, done = divmod(step, stretch.steps_per_epoch)
        lane.start.copy_(torch.tensor([epoch, done * size]))
        last = min(stretch.last_step, (epoch + 1) * stretch.steps_per_epoch)
        batches = _batches(_chunks(loader, slots), size, done * size, memory)
        for current in range(step, last):
            batch = next(batches, None)
            if batch is None:
                raise DataError(
                    f"{stream.name}: ended after {(current - epoch * stretch.steps_per_epoch) * size} of the "
                    f"{stretch.steps_per_epoch * size} samples that this process needs in an epoch; lower data.samples"
                )
            yield batch
        step = last


def _chunks(loader: DataLoader[Batch | Packed | int | DataError], slots: Slots | None) -> Iterator[Batch | int]:
    with lost_workers(loader):
        for chunk in map(unpacked, loader):
            if isinstance(chunk, DataError):
                chunk.everywhere = False  # only this process failed; the others may be able to load their rows
                raise chunk
            yield slots.opened(chunk) if slots is not None else chunk
            if slots is not None:
                slots.free(chunk)


def _batches(chunks: Iterator[Batch | int], size: int, skip: int, memory: BatchMemory | None) -> Iterator[Batch]:
    """Combine chunks to batches of `size` rows, after dropping the first `skip` rows.

    A chunk that is a number n stands for n dropped rows.
    """
    assembly = Assembly(size, memory)
    for chunk in chunks:
        if isinstance(chunk, int):
            skip -= chunk
            continue
        skipped = min(skip, len(chunk))
        skip -= skipped
        left = rows_of(chunk, slice(skipped, None))
        while len(left):
            taken = assembly.missing
            assembly.add(rows_of(left, slice(taken)))
            left = replace(rows_of(left, slice(taken, None)), bad={})
            if not assembly.missing:
                yield assembly.batch()
                assembly = Assembly(size, memory)
