"""Training data of a run, with one interface for random access and for streams."""

from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass

import numpy as np

from clipkit.data.batch import Batch, BatchMemory, InputMaker
from clipkit.data.loader import Replacement, pair_loader
from clipkit.data.pairs import Pairs
from clipkit.data.sampler import EpochSampler, Sample
from clipkit.data.sources.streams import Stream, stream_of
from clipkit.data.stream import StreamSampler, Stretch, stream_loader
from clipkit.data.workers import WorkerProgress
from clipkit.errors import DataError


@dataclass(frozen=True)
class Loading:
    """Settings of the data loader.

    `IndexedFeed` ignores `seed` and `process`; `StreamFeed` ignores `replacement`, `progress` and `known_bad`.

    Args:
        workers: loader processes; 0 loads in this process.
        seed: seed of the run.
        process: index of this process, and number of processes.
        replacement: function that chooses another sample if an image is unreadable; None: raise the error.
        progress: record of the image that each worker is reading.
        known_bad: positions of images that are known to be missing or unreadable.
        memory: memory for the batches; None: new tensors on the CPU.
    """

    workers: int
    seed: int = 0
    process: tuple[int, int] = (0, 1)
    replacement: Replacement | None = None
    progress: WorkerProgress | None = None
    known_bad: Collection[int] = ()
    memory: BatchMemory | None = None


@dataclass(frozen=True)
class IndexedFeed:
    """Training data with random access to images and captions by position."""

    pairs: Pairs
    """Images and captions by position; empty for a stream (see `can_index`)."""
    can_index = True
    """True if images and captions can be accessed by position."""
    depends_on_workers = False
    """True if the order of the samples depends on the number of processes and loader workers."""

    @property
    def name(self) -> str:
        """Name of the source, for messages."""
        return self.pairs.name

    @property
    def fingerprint(self) -> str:
        """Hash that changes if the data changes."""
        return self.pairs.fingerprint

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of images and captions, as {"images": N, "captions": M}; for a stream, per epoch."""
        return {"images": len(self.pairs.images), "captions": len(self.pairs.captions)}

    @property
    def description(self) -> str:
        """Size of the data in words, e.g. "6000 images, 30000 captions"."""
        images = f"{len(self.pairs.images)} images, " if self.pairs.has_images else ""
        return f"{images}{len(self.pairs.captions)} captions"

    @property
    def reopened(self) -> int | None:
        """None: only streams count how many lost connections were opened again."""
        return None

    def image_name(self, image: int) -> str:
        """Return the location of an image for messages. `image` is the ID of the image in a batch."""
        return str(self.pairs.images[image])

    def sampler(self, captions: str, batch_size: int, seed: int) -> EpochSampler:
        """Return the sampler, which determines the order of the samples.

        Args:
            captions: "one": each image occurs once per epoch; "all": each caption occurs once per epoch.
            batch_size: pairs in a global batch.
            seed: seed of the run.

        Raises:
            DataError: the data has fewer samples than a batch.
        """
        return EpochSampler(self.pairs, captions, batch_size, seed)

    def loader(
        self, slices: Iterable[list[Sample]], maker: InputMaker, loading: Loading
    ) -> Generator[Batch, None, None]:
        """Yield the batches of this process.

        Args:
            slices: for each batch, the samples that this process loads; result of the sampler's method `slices`.
            maker: object that converts samples to inputs.
            loading: settings of the loader.

        Raises:
            DataError: an image or the stream cannot be read.
        """
        return pair_loader(
            self.pairs,
            slices,
            maker,
            loading.workers,
            loading.replacement,
            loading.progress,
            loading.known_bad,
            loading.memory,
        )


@dataclass(frozen=True)
class StreamFeed:
    """Training data that is read sequentially, with the attributes and methods of `IndexedFeed`.

    Args:
        stream: source of the data.
        samples: pairs per epoch.
    """

    stream: Stream
    samples: int
    can_index = False
    depends_on_workers = True

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def pairs(self) -> Pairs:
        """Empty pairs, because a stream has no random access."""
        return Pairs(self.stream.name, [], [], np.empty(0, dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        return self.stream.fingerprint

    @property
    def counts(self) -> dict[str, int]:
        return {"images": self.samples, "captions": self.samples}

    @property
    def description(self) -> str:
        return f"a stream in {len(self.stream.parts)} parts, {self.samples} pairs per epoch"

    @property
    def reopened(self) -> int | None:
        return int(self.stream.reopened.sum())

    def image_name(self, image: int) -> str:
        return f"sample {image:016x}"

    def sampler(self, captions: str, batch_size: int, seed: int) -> StreamSampler:
        return StreamSampler(self.samples, batch_size)

    def loader(self, slices: Stretch, maker: InputMaker, loading: Loading) -> Generator[Batch, None, None]:
        return stream_loader(self.stream, slices, maker, loading.workers, loading.seed, loading.process, loading.memory)


AnyFeed = IndexedFeed | StreamFeed


def stream_feed(source: str, samples: int | None) -> StreamFeed | None:
    """Return the training data of a source if the source is a stream; otherwise None.

    Args:
        source: source as given by the user.
        samples: pairs per epoch; None: not set by the user.

    Raises:
        DataError: the source is a stream, but `samples` is None.
    """
    stream = stream_of(source)
    if stream is None:
        return None
    if samples is None:
        raise DataError(f"{source}: is a stream of unknown length; set data.samples to the number of pairs per epoch")
    return StreamFeed(stream, samples)
