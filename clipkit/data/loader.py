"""Loader for data with random access. Worker processes load batches in advance."""

import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clipkit.data.batch import Assembly, Batch, BatchMemory, InputMaker
from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.data.shared_memory import Packed, packed, unpacked
from clipkit.data.slots import Inputs, Slots, Stack, slots_for
from clipkit.data.sources.remote import fetch_ahead
from clipkit.data.workers import WorkerProgress, lost_workers, start_worker
from clipkit.errors import DataError

# (sample, attempt) -> replacement sample, for a missing or unreadable image
Replacement = Callable[[Sample, int], Sample]

# Largest number of samples in a chunk: a part of a batch, which one worker loads.
_CHUNK = 256
# Each worker prepares at least _AHEAD chunks in advance; all workers together prepare _BATCHES_AHEAD batches.
_AHEAD = 2
_BATCHES_AHEAD = 2
# Number of replacements to try for a sample. If half of all images are bad, one in 10^19 samples needs more.
_ATTEMPTS = 64


class _Pairs(Dataset[Batch | Packed | DataError]):
    """Dataset that converts a list of samples to a chunk (a part of a batch).

    A DataError is returned, not raised, because torch adds a traceback to an error that a worker raises.
    """

    def __init__(
        self,
        pairs: Pairs,
        maker: InputMaker,
        replacement: Replacement | None,
        known_bad: Collection[int],
        progress: WorkerProgress,
        slots: Slots | None,
    ) -> None:
        self.pairs = pairs
        self.maker = maker
        self.replacement = replacement
        self.known_bad = known_bad
        self.progress = progress
        self.slots = slots
        self.max_pixels = Image.MAX_IMAGE_PIXELS

    def __getitems__(self, samples: list[Sample]) -> Batch | Packed | DataError:
        if self.maker.augments:
            fetch_ahead(self.pairs.images[sample.image] for sample in samples if sample.image not in self.known_bad)
        stack = Stack(len(samples), self.slots)
        bad: dict[int, str] = {}
        drawn = []
        for row, sample in enumerate(samples):
            made = self._made(sample, bad)
            if isinstance(made, DataError):
                return made
            drawn.append(made[0])
            stack.put(row, made[1])
        rows = [sample.caption for sample in drawn]
        ids = (
            torch.tensor([sample.image for sample in drawn]),
            torch.from_numpy(self.pairs.caption_ids[rows]),
            torch.tensor(rows),
        )
        return packed(self.maker.batch(drawn, stack, ids, bad))

    def _made(self, sample: Sample, all_bad: dict[int, str]) -> tuple[Sample, Inputs] | DataError:
        """Load the image of a sample, or of a replacement sample if the image is unreadable.

        Return the sample whose image was loaded, and the inputs of this image. Unreadable images are added to `all_bad`
        (position -> reason).
        """
        bad: dict[int, str] = {}
        for attempt in range(_ATTEMPTS):
            drawn = self.replacement(sample, attempt) if attempt and self.replacement is not None else sample
            if drawn.image in self.known_bad or drawn.image in bad:
                continue
            if not self.maker.augments:
                return drawn, {}
            self.progress.begin(drawn.image)
            try:
                return drawn, self.maker.of_image(self.pairs.images[drawn.image], drawn.epoch, drawn.image)
            except DataError as error:
                if self.replacement is None:
                    return error
                bad[drawn.image] = all_bad[drawn.image] = str(error)
        return DataError(
            f"{self.pairs.name}: an image is unreadable ({next(iter(bad.values()), 'the file is missing')}), and "
            f"so are the {_ATTEMPTS} images that were tried instead; run clipkit data check to "
            "find all unreadable images"
        )


def pair_loader(
    pairs: Pairs,
    batches: Iterable[list[Sample]],
    maker: InputMaker,
    workers: int,
    replacement: Replacement | None = None,
    progress: WorkerProgress | None = None,
    known_bad: Collection[int] = (),
    memory: BatchMemory | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of this process, which loader workers prepare in advance.

    Args:
        pairs: the data.
        batches: for each step, the samples of this process.
        maker: object that converts samples to inputs.
        workers: loader processes; 0 loads in this process.
        replacement: function that chooses another sample if an image is unreadable; None: raise the error.
        progress: record of the image that each worker is reading.
        known_bad: positions of images that are known to be missing or unreadable.
        memory: memory for the batches; None: new tensors on the CPU.

    Raises:
        DataError: an image cannot be decoded, and there is no readable replacement.
        RuntimeError: a worker died. The message starts with "DataLoader worker", as in torch.
    """
    # More workers than cores only slow each other down; the batches do not depend on the number.
    workers = min(workers, os.cpu_count() or 1) if maker.augments else 0
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    chunks = _Chunks(chain([first], batches), _CHUNK if workers else None)
    ahead = max(_AHEAD, -(-_BATCHES_AHEAD * len(first) // (_CHUNK * max(1, workers))))
    slots, ahead = slots_for(maker.example() if workers else {}, min(_CHUNK, len(first)), workers, ahead)
    loader: DataLoader[Batch | Packed | DataError] = DataLoader(
        _Pairs(pairs, maker, replacement, frozenset(known_bad), progress or WorkerProgress(pairs.images), slots),
        batch_sampler=chunks,
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        worker_init_fn=start_worker,
        # Separate generator: creating the iterator draws a seed, which must not come from the global generator.
        generator=torch.Generator(),
    )
    assembly: Assembly | None = None
    for chunk in _chunks_of(loader, slots):
        if isinstance(chunk, DataError):
            chunk.everywhere = False  # only this process failed; the others may be able to load their rows
            raise chunk
        if assembly is None:
            rows = chunks.sizes.popleft()
            if memory is None and not workers:
                yield chunk
                continue
            assembly = Assembly(rows, memory)
        assembly.add(chunk)
        if not assembly.missing:
            yield assembly.batch()
            assembly = None


def _same(chunk: Any) -> Any:
    return chunk


def _chunks_of(loader: DataLoader[Batch | Packed | DataError], slots: Slots | None) -> Iterator[Batch | DataError]:
    """Yield the chunks of the loader. A chunk is valid only until the next chunk is requested."""
    with lost_workers(loader):
        for chunk in loader:
            batch = unpacked(chunk)
            yield slots.opened(batch) if slots is not None else batch
            if slots is not None:
                slots.free(batch)


class _Chunks:
    """Batch sampler that splits each batch into lists of at most `chunk` samples.

    If `chunk` is None, batches are not split. The size of each batch is appended to `sizes`.
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
