"""Batches of inputs by name, loaded ahead."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.data.text_views import TextOf
from clipkit.errors import DataError
from clipkit.pictures import open_picture

# (picture, epoch, position) -> inputs of the image tower by name
Augment = Callable[[Image.Image, int, int], dict[str, Tensor]]
Loaded = dict[str, dict[str, Tensor]] | DataError
Tokenize = Callable[[list[str]], dict[str, Int[Tensor, "B L"]]]


@dataclass(frozen=True)
class Batch:
    """One process's slice of a global batch: inputs, and who they are."""

    inputs: dict[str, dict[str, Tensor]]
    """By the name of the features that they become, as image_features; each the tower's inputs by name."""
    image_ids: Int[Tensor, " B"]
    """Position of each picture in the source."""
    caption_ids: Int[Tensor, " B"]
    """Position of each caption in the source, or of the first one that is the same string."""
    caption_rows: Int[Tensor, " B"]
    """Position of each caption itself."""

    def __len__(self) -> int:
        return len(self.image_ids)


# Samples that a worker hands over at once, and chunks that each worker prepares ahead.
_CHUNK = 64
_AHEAD = 4


class _Pictures(Dataset[tuple[Sample, Loaded]]):
    """Pictures of samples; what a user got wrong travels as a value, so that it stays one line on the other side."""

    def __init__(self, pairs: Pairs, augments: Mapping[str, Augment]) -> None:
        self.pairs = pairs
        self.augments = augments

    def __getitem__(self, sample: Sample) -> tuple[Sample, Loaded]:
        if not self.augments:
            return sample, {}
        try:
            picture = open_picture(self.pairs.pictures[sample.image])
            made = {name: augment(picture, sample.epoch, sample.image) for name, augment in self.augments.items()}
            return sample, made
        except DataError as error:
            return sample, error


class _Collate:
    def __init__(self, pairs: Pairs, texts: Mapping[str, TextOf], tokenize: Tokenize) -> None:
        self.pairs = pairs
        self.texts = texts
        self.tokenize = tokenize

    def __call__(self, samples: list[tuple[Sample, Loaded]]) -> Batch | DataError:
        pictures: list[dict[str, dict[str, Tensor]]] = []
        for _, loaded in samples:
            if isinstance(loaded, DataError):
                return loaded
            pictures.append(loaded)
        inputs = {name: _stacked([loaded[name] for loaded in pictures]) for name in pictures[0]}
        strings: list[str] = []
        tokens: dict[str, Tensor] = {}
        for name, view in self.texts.items():
            before, strings = strings, [view(sample) for sample, _ in samples]
            if strings != before:  # two passes of the same captions have the same tokens
                tokens = self.tokenize(strings)
            inputs[name] = tokens
        rows = [sample.caption for sample, _ in samples]
        return Batch(
            inputs,
            image_ids=torch.tensor([sample.image for sample, _ in samples]),
            caption_ids=torch.from_numpy(self.pairs.caption_ids[rows]),
            caption_rows=torch.tensor(rows),
        )


def _stacked(inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in inputs]) for name in inputs[0]}


def pair_loader(
    pairs: Pairs,
    batches: Iterable[list[Sample]],
    augments: Mapping[str, Augment],
    texts: Mapping[str, TextOf],
    tokenize: Tokenize,
    workers: int,
) -> Generator[Batch, None, None]:
    """One iterator over all the `batches` of a run, so that workers live as long as the run does.

    Workers hand over a few pictures at a time, so that what waits in memory does not grow with the batch.

    Args:
        pairs: the data.
        batches: this process's samples, step by step.
        augments: for each kind of features that come from pixels, picture to pixels.
        texts: for each kind that comes from tokens, sample to string.
        tokenize: strings to tokens.
        workers: loader processes; 0 loads here.

    Raises:
        DataError: when a picture that is due cannot be decoded.
        RuntimeError: a worker died, in the words of torch: "DataLoader worker …".
    """
    # More workers than cores only get into each other's way; the batches are the same whatever their number.
    workers = min(workers, os.cpu_count() or 1) if augments else 0
    chunks = _Chunks(batches, _CHUNK if workers else None)
    loader: DataLoader[tuple[Sample, Loaded]] = DataLoader(
        _Pictures(pairs, augments),
        batch_sampler=chunks,
        collate_fn=_Collate(pairs, texts, tokenize),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_start_worker,
        # Of its own: an iterator over a loader draws a seed, which must not come from the global generator.
        generator=torch.Generator(),
    )
    arrived: list[Batch] = []
    for chunk in _from_living(loader):
        if isinstance(chunk, DataError):
            chunk.everywhere = False  # the other processes' slices may be fine
            raise chunk
        arrived.append(chunk)
        if sum(len(one) for one in arrived) == chunks.sizes[0]:
            chunks.sizes.popleft()
            yield _joined(arrived)
            arrived = []


def _from_living(loader: DataLoader[tuple[Sample, Loaded]]) -> Iterator[Batch | DataError]:
    """What the loader gives. A worker that dies while it hands a chunk over is met here as a lost connection."""
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not loader.num_workers:
            raise
        raise RuntimeError(f"DataLoader worker is gone: {str(error) or type(error).__name__}") from error


def _start_worker(worker: int) -> None:
    # The threads of the tokenizer do not survive the fork: in parallel it would wait for them for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _leave_signals_to_the_run()


def _leave_signals_to_the_run() -> None:
    """Outlive what asks the run to stop: it often goes to a whole group of processes, and the run needs its workers."""
    signal.set_wakeup_fd(-1)  # the run hears its own signals there
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    # SIGTERM is also how the run itself ends its workers, so the sender matters.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    run = os.getppid()

    def obey_the_run() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != run:
            pass
        os._exit(0)

    threading.Thread(target=obey_the_run, daemon=True).start()


class _Chunks:
    """The batches cut into chunks of so many samples; `sizes` are those of the batches that were begun."""

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


def _joined(chunks: list[Batch]) -> Batch:
    if len(chunks) == 1:
        return chunks[0]
    return Batch(
        {name: _joined_inputs([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs},
        image_ids=torch.cat([chunk.image_ids for chunk in chunks]),
        caption_ids=torch.cat([chunk.caption_ids for chunk in chunks]),
        caption_rows=torch.cat([chunk.caption_rows for chunk in chunks]),
    )


def _joined_inputs(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows one below the other; tokens, which are padded to the longest of a chunk, to the longest of all.

    The padding is zeros: the mask, which is zero there too, keeps it out of everything.
    """
    joined = {}
    for name in chunks[0]:
        values = [chunk[name] for chunk in chunks]
        if values[0].ndim == 2:
            longest = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(value, (0, longest - value.shape[1])) for value in values]
        joined[name] = torch.cat(values)
    return joined
