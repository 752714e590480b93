"""Batches of a stream: what comes, in an order that seed, epoch, processes and workers determine.

The shards of an epoch are shuffled and dealt to lanes, one a loader worker of each process; a lane reads its shards one
after the other and shuffles within a buffer. An epoch is as many batches as `data.samples` makes; what is left of the
stream then is dropped, and the next epoch begins with all shards again, so that no sample comes twice in one.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipkit.data.loader import Augment, Batch, joined, stacked, start_worker
from clipkit.data.pairs import Pairs
from clipkit.data.sources.streams import Stream, StreamSample, identity_of, stream_of
from clipkit.data.tokens import Tokenize
from clipkit.errors import DataError
from clipkit.images import open_image
from clipkit.seeds import mix

_STREAM, _CAPTION, _STAND_IN = 6, 7, 8  # beside the streams of order, caption, augmentation and views
_CHUNK = 64
_BUFFER = 1000
"""Samples among which a lane shuffles, with their images' files."""


class _Unlisted(Sequence[str]):
    """As many as an epoch has, none of which can be asked for."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: object) -> str:
        raise TypeError("a stream has no positions")


@dataclass(frozen=True)
class StreamPairs(Pairs):
    """Pairs that come one after the other; of positions only their number is known, that of an epoch."""

    stream: Stream = field(default_factory=lambda: Stream("", [], {}))

    @property
    def fingerprint(self) -> str:
        return self.stream.fingerprint

    def image_name(self, image: int) -> str:
        """All that its identity tells."""
        return f"sample {image:016x}"


def read_stream(source: str, samples: int | None) -> StreamPairs | None:
    """The stream that a source means; None: it is indexable.

    Args:
        source: as a user writes it.
        samples: of an epoch.

    Raises:
        DataError: nobody said how many samples an epoch has.
    """
    stream = stream_of(source)
    if stream is None:
        return None
    if samples is None:
        raise DataError(
            f"{source}: is a stream, whose length is not known; say how many pairs an epoch has: data.samples"
        )
    unlisted = _Unlisted(samples)
    nowhere = np.empty(0, dtype=np.int64)
    return StreamPairs(stream.name, unlisted, unlisted, nowhere, stream=stream)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stretch:
    """Steps of a run, and one process's rows of their batches."""

    first_step: int
    last_step: int
    rows: slice
    steps_per_epoch: int


class StreamSampler:
    """What `EpochSampler` is for an indexable source.

    Args:
        pairs: the stream.
        batch_size: pairs in a global batch.

    Raises:
        DataError: an epoch has not one full batch.
    """

    def __init__(self, pairs: StreamPairs, batch_size: int) -> None:
        if batch_size > len(pairs.images):
            raise DataError(
                f"train.batch_size is {batch_size}, but data.samples {len(pairs.images)}; set train.batch_size to at "
                f"most {len(pairs.images)}"
            )
        self.steps_per_epoch = len(pairs.images) // batch_size
        self.stand_in = None

    def slices(self, first_step: int, last_step: int, rows: slice) -> Stretch:
        """The steps from `first_step` up to before `last_step`."""
        return Stretch(first_step, last_step, rows, self.steps_per_epoch)


class _Lane(IterableDataset[Batch | int | DataError]):
    """Chunks of one process's samples, or of those it has seen already their number; each worker gives its lane's."""

    def __init__(
        self,
        stream: Stream,
        collate: Callable[[list[StreamSample], int], Batch | DataError],
        seed: int,
        process: tuple[int, int],
    ) -> None:
        self.stream = stream
        self.collate = collate
        self.seed = seed
        self.process = process
        self.start = torch.zeros(2, dtype=torch.int64).share_memory_()
        """The epoch, and how many rows of it this process has seen already."""

    def __iter__(self) -> Iterator[Batch | int | DataError]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        index, count = self.process
        epoch, seen = self.start.tolist()
        for turn, chunk in enumerate(self._chunks(epoch, index * workers + number, count * workers), 1):
            if isinstance(chunk, DataError):
                yield chunk
                return
            # Workers take turns, so that before the end of a turn no more rows than this have come from all of them.
            yield len(chunk) if turn * workers * _CHUNK <= seen else self.collate(chunk, epoch)

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
        # Fewer shards than lanes: each lane reads all of them, and keeps its share.
        every = (sample for part in order for sample in self.stream.samples(parts[part]))
        yield from islice(every, lane, None, lanes)

    def _shuffled(self, samples: Iterator[StreamSample], epoch: int, lane: int) -> Iterator[StreamSample]:
        generator = np.random.default_rng(mix(self.seed, _STREAM, epoch, lane))
        buffer = list(islice(samples, _BUFFER))
        for sample in samples:
            place = int(generator.integers(len(buffer)))
            yield buffer[place]
            buffer[place] = sample
        for place in generator.permutation(len(buffer)).tolist():
            yield buffer[place]


class _Collate:
    def __init__(
        self, name: str, augments: Mapping[str, Augment], texts: Sequence[str], tokenize: Tokenize, seed: int,
        draft: int | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.augments = augments
        self.texts = texts
        self.tokenize = tokenize
        self.seed = seed
        self.draft = draft

    def __call__(self, samples: list[StreamSample], epoch: int) -> Batch | DataError:
        bad: dict[int, str] = {}
        made: dict[int, dict[str, dict[str, Tensor]]] = {}
        for place, sample in enumerate(samples):
            try:
                image = open_image(sample.image, self.draft)
                made[place] = {name: own(image, epoch, sample.identity) for name, own in self.augments.items()}
            except DataError as error:
                bad[sample.identity] = str(error)
        if not made:
            return DataError(f"{self.name}: of {len(samples)} images none can be decoded ({next(iter(bad.values()))})")
        sound = list(made)
        # Another sample of the chunk stands in, so that its size is what it would have been.
        places = [
            place if place in made else sound[mix(self.seed, _STAND_IN, samples[place].identity) % len(sound)]
            for place in range(len(samples))
        ]
        kept = [samples[place] for place in places]
        captions = [self._caption(sample, epoch) for sample in kept]
        inputs = {name: stacked([made[place][name] for place in places]) for name in self.augments}
        if self.texts:
            inputs |= dict.fromkeys(self.texts, self.tokenize(captions))
        image_ids = torch.tensor([sample.identity for sample in kept])
        caption_ids = torch.tensor([identity_of(caption) for caption in captions])
        return Batch(inputs, image_ids, caption_ids, image_ids, bad)

    def _caption(self, sample: StreamSample, epoch: int) -> str:
        """Another one each epoch."""
        return sample.captions[(mix(self.seed, _CAPTION, sample.identity) + epoch) % len(sample.captions)]


def stream_loader(
    pairs: StreamPairs,
    stretch: Stretch,
    augments: Mapping[str, Augment],
    texts: Sequence[str],
    tokenize: Tokenize,
    workers: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    draft: int | None = None,
) -> Generator[Batch, None, None]:
    """Batches of a stream, one process's rows of each.

    Args:
        pairs: the stream.
        stretch: which steps.
        augments: for each kind of features that come from pixels, image to pixels.
        texts: the kinds that come from tokens, all of them the sample's caption.
        tokenize: strings to tokens.
        workers: loader processes, each a lane; 0: this one.
        seed: the run's.
        process: this one's number, and how many there are.
        draft: as of `pair_loader`.

    Raises:
        DataError: the stream cannot be read, or ends before an epoch does.
    """
    collate = _Collate(pairs.name, augments, texts, tokenize, seed, draft)
    lane = _Lane(pairs.stream, collate, seed, process)
    loader: DataLoader[Batch | int | DataError] = DataLoader(
        lane,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    size = stretch.rows.stop - stretch.rows.start
    step = stretch.first_step
    while step < stretch.last_step:
        epoch, done = divmod(step, stretch.steps_per_epoch)
        lane.start.copy_(torch.tensor([epoch, done * size]))
        last = min(stretch.last_step, (epoch + 1) * stretch.steps_per_epoch)
        batches = _batches(_chunks(loader), size, skip=done * size)
        for step_ in range(step, last):
            batch = next(batches, None)
            if batch is None:
                raise DataError(
                    f"{pairs.name}: the stream ended after {(step_ - epoch * stretch.steps_per_epoch) * size} of this "
                    f"process's {stretch.steps_per_epoch * size} samples of an epoch; lower data.samples"
                )
            yield batch
        step = last


def _chunks(loader: DataLoader[Batch | int | DataError]) -> Iterator[Batch | int]:
    for chunk in loader:
        if isinstance(chunk, DataError):
            chunk.everywhere = False
            raise chunk
        yield chunk


def _batches(chunks: Iterator[Batch | int], size: int, skip: int) -> Iterator[Batch]:
    """Rows in their order, `size` at a time, without the first `skip`."""
    waiting: list[Batch] = []
    count = 0
    for chunk in chunks:
        if isinstance(chunk, int):
            skip -= chunk
            continue
        if skip:
            cut = min(skip, len(chunk))
            skip -= cut
            chunk = rows_of(chunk, slice(cut, None))
        if len(chunk):
            waiting.append(chunk)
            count += len(chunk)
        while count >= size:
            whole = joined(waiting)
            yield rows_of(whole, slice(size))
            left = rows_of(whole, slice(size, None))
            waiting, count = ([replace(left, bad={})], len(left)) if len(left) else ([], 0)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(
        {name: {key: value[rows] for key, value in own.items()} for name, own in batch.inputs.items()},
        batch.image_ids[rows],
        batch.caption_ids[rows],
        batch.caption_rows[rows],
        batch.bad,
    )
