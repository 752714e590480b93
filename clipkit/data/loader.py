"""Loader of batches of indexed data, with workers that load them in advance."""

import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clipkit.data.batch import Batch, InputMaker, Inputs, joined
from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.data.shared_memory import Packed, packed, unpacked
from clipkit.data.sources.remote import fetch_ahead
from clipkit.data.workers import WorkerProgress, start_worker
from clipkit.errors import DataError

# (sample, attempt) -> the sample that replaces it if its image is missing or unreadable
Replacement = Callable[[Sample, int], Sample]

# Samples per chunk that a worker returns, and chunks that each worker prepares ahead.
_CHUNK = 256
_AHEAD = 2
# Replacements that are tried for a sample. If half of all images are bad, one in 10^19 samples needs more.
_ATTEMPTS = 64


@dataclass(frozen=True)
class _Drawn:
    """A sample, or its replacement, with the inputs of its image."""

    sample: Sample
    inputs: Inputs
    bad: dict[int, str]


class _Images(Dataset[_Drawn | DataError]):
    """Dataset of the images of samples.

    It returns a DataError as a value, since raising it in a worker adds a traceback.
    """

    def __init__(
        self,
        pairs: Pairs,
        maker: InputMaker,
        replacement: Replacement | None,
        known_bad: Collection[int],
        progress: WorkerProgress,
    ) -> None:
        self.pairs = pairs
        self.maker = maker
        self.replacement = replacement
        self.known_bad = known_bad
        self.progress = progress
        self.max_pixels = Image.MAX_IMAGE_PIXELS

    def __getitems__(self, samples: list[Sample]) -> list[_Drawn | DataError]:
        if self.maker.augments:
            fetch_ahead(self.pairs.images[sample.image] for sample in samples if sample.image not in self.known_bad)
        return [self[sample] for sample in samples]

    def __getitem__(self, sample: Sample) -> _Drawn | DataError:
        bad: dict[int, str] = {}
        for attempt in range(_ATTEMPTS):
            drawn = self.replacement(sample, attempt) if attempt and self.replacement is not None else sample
            if drawn.image in self.known_bad or drawn.image in bad:
                continue
            if not self.maker.augments:
                return _Drawn(drawn, {}, bad)
            self.progress.begin(drawn.image)
            try:
                inputs = self.maker.of_image(self.pairs.images[drawn.image], drawn.epoch, drawn.image)
                return _Drawn(drawn, inputs, bad)
            except DataError as error:
                if self.replacement is None:
                    return error
                bad[drawn.image] = str(error)
        return DataError(
            f"{self.pairs.name}: {_ATTEMPTS} replacements of an unreadable image are unreadable too, the first: "
            f"{next(iter(bad.values()), 'all are missing')}; run clipkit data check"
        )


class _Collate:
    def __init__(self, pairs: Pairs, maker: InputMaker) -> None:
        self.pairs = pairs
        self.maker = maker

    def __call__(self, drawn: list[_Drawn | DataError]) -> Batch | Packed | DataError:
        sound: list[_Drawn] = []
        for item in drawn:
            if isinstance(item, DataError):
                return item
            sound.append(item)
        samples = [item.sample for item in sound]
        rows = [sample.caption for sample in samples]
        ids = (
            torch.tensor([sample.image for sample in samples]),
            torch.from_numpy(self.pairs.caption_ids[rows]),
            torch.tensor(rows),
        )
        bad = {image: reason for item in sound for image, reason in item.bad.items()}
        return packed(self.maker.batch(samples, [item.inputs for item in sound], ids, bad))


def pair_loader(
    pairs: Pairs,
    batches: Iterable[list[Sample]],
    maker: InputMaker,
    workers: int,
    replacement: Replacement | None = None,
    progress: WorkerProgress | None = None,
    known_bad: Collection[int] = (),
) -> Generator[Batch, None, None]:
    """Load all batches of a run with one set of workers.

    Workers return chunks of a batch, so that the memory of the prefetched data does not grow with the batch size.

    Args:
        pairs: the data.
        batches: for each step, the samples of this process.
        maker: converts samples to inputs.
        workers: loader processes; 0 loads in this process.
        replacement: chooses another sample if an image is missing or unreadable; None: raise the error.
        progress: record of the image that each worker is reading.
        known_bad: positions of images that are already known to be missing or unreadable.

    Raises:
        DataError: an image cannot be decoded, and there is no readable replacement.
        RuntimeError: a worker died; the message starts with "DataLoader worker", as in torch.
    """
    # More workers than cores only slow each other down; the batches do not depend on the number.
    workers = min(workers, os.cpu_count() or 1) if maker.augments else 0
    chunks = _Chunks(batches, _CHUNK if workers else None)
    loader: DataLoader[_Drawn | DataError] = DataLoader(
        _Images(pairs, maker, replacement, frozenset(known_bad), progress or WorkerProgress(pairs.images)),
        batch_sampler=chunks,
        collate_fn=_Collate(pairs, maker),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=start_worker,
        # Separate generator: creating the iterator draws a seed, which must not come from the global generator.
        generator=torch.Generator(),
    )
    arrived: list[Batch] = []
    for chunk in _chunks_of(loader):
        if isinstance(chunk, DataError):
            chunk.everywhere = False  # other processes may be able to load their slices
            raise chunk
        arrived.append(chunk)
        if sum(len(part) for part in arrived) == chunks.sizes[0]:
            chunks.sizes.popleft()
            yield joined(arrived)
            arrived = []


def _chunks_of(loader: DataLoader[_Drawn | DataError]) -> Iterator[Batch | DataError]:
    """Yield the chunks of the loader.

    If a worker dies while it sends a chunk, raise the RuntimeError of a dead worker.
    """
    try:
        for chunk in loader:
            yield unpacked(chunk)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not loader.num_workers:
            raise
        raise RuntimeError(f"DataLoader worker is gone: {str(error) or type(error).__name__}") from error


class _Chunks:
    """Batches split into chunks of at most `chunk` samples.

    `sizes` contains the sizes of the batches already started.
    """

    def __init__(self, batches: Iterable[list[Sample]], chunk: int | None) -> None:
        self.batches = batches
        self.chunk = chunk
        self.sizes: deque[int] = deque()

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self.batches:
            self.sizes.append(len(batch))
            step = self.chunk or len(batch)
            for start in range(0, len(batch), step):
                yield batch[start : start + step]
