"""Batches of inputs by name, loaded ahead."""

import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.data.text_views import TextOf, TextView
from clipkit.data.tokens import Tokenize, TokenStore
from clipkit.errors import DataError
from clipkit.images import open_image

# (image, epoch, position) -> inputs of the image tower by name
Augment = Callable[[Image.Image, int, int], dict[str, Tensor]]
Loaded = dict[str, dict[str, Tensor]]
# (sample, attempt) -> what takes its place where its image cannot be had
StandIn = Callable[[Sample, int], Sample]


@dataclass(frozen=True)
class Batch:
    """One process's slice of a global batch: inputs, and who they are."""

    inputs: dict[str, dict[str, Tensor]]
    """By the name of the features that they become, as image_features; each the tower's inputs by name."""
    image_ids: Int[Tensor, " B"]
    """Position of each image in the source."""
    caption_ids: Int[Tensor, " B"]
    """Position of each caption in the source, or of the first one that is the same string."""
    caption_rows: Int[Tensor, " B"]
    """Position of each caption itself."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Images that were due and could not be had, by position: why. Others stand in for them."""

    def __len__(self) -> int:
        return len(self.image_ids)


# Samples that a worker hands over at once, and chunks that each worker prepares ahead.
_CHUNK = 256
_AHEAD = 2


# Stand-ins that are tried for one sample. Where half of all images are bad, so many fail once in 10^19 samples.
_ATTEMPTS = 64


@dataclass(frozen=True)
class _Drawn:
    """A sample, or the one that stands in for it, with its images as inputs."""

    sample: Sample
    inputs: Loaded
    bad: dict[int, str]


class AtWork:
    """Which image each worker is at, so that one that dies can be reported with it.

    Args:
        pairs: the images.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._seats = torch.full((os.cpu_count() or 1, 2), -1).share_memory_()  # a row a worker: process, image

    def begin(self, image: int) -> None:
        """A worker opens an image; elsewhere this does nothing."""
        worker = get_worker_info()
        if worker is not None:
            self._seats[worker.id] = torch.tensor([os.getpid(), image])

    def last_seen(self, reason: str) -> str:
        """The images that the workers whose processes `reason` names were at, or all of them; "" if none is."""
        began = {process: image for process, image in self._seats.tolist() if image >= 0}
        named = [image for process, image in began.items() if re.search(rf"\b{process}\b", reason)]
        return " or ".join(str(self.pairs.images[image]) for image in named or began.values())


class _Images(Dataset[_Drawn | DataError]):
    """Images of samples; what a user got wrong travels as a value, so that it stays one line on the other side."""

    def __init__(
        self,
        pairs: Pairs,
        augments: Mapping[str, Augment],
        stand_in: StandIn | None,
        known_bad: Collection[int],
        at_work: "AtWork",
        draft: int | None,
    ) -> None:
        self.pairs = pairs
        self.augments = augments
        self.stand_in = stand_in
        self.known_bad = known_bad
        self.at_work = at_work
        self.draft = draft
        self.max_pixels = Image.MAX_IMAGE_PIXELS

    def __getitem__(self, sample: Sample) -> _Drawn | DataError:
        bad: dict[int, str] = {}
        for attempt in range(_ATTEMPTS):
            own = self.stand_in(sample, attempt) if attempt and self.stand_in is not None else sample
            if own.image in self.known_bad or own.image in bad:
                continue
            if not self.augments:
                return _Drawn(own, {}, bad)
            self.at_work.begin(own.image)
            try:
                image = open_image(self.pairs.images[own.image], self.draft)
                made = {name: augment(image, own.epoch, own.image) for name, augment in self.augments.items()}
                return _Drawn(own, made, bad)
            except DataError as error:
                if self.stand_in is None:
                    return error
                bad[own.image] = str(error)
        return DataError(
            f"{self.pairs.name}: of {_ATTEMPTS} images that were tried in place of a broken one none can be decoded "
            f"({next(iter(bad.values()), 'all are missing')}); look at it with clipkit data check"
        )


class _Collate:
    def __init__(self, pairs: Pairs, texts: Mapping[str, TextOf], tokenize: Tokenize, store: TokenStore | None) -> None:
        self.pairs = pairs
        self.texts = texts
        self.tokenize = tokenize
        self.store = store

    def __call__(self, drawn: list[_Drawn | DataError]) -> Batch | DataError:
        samples: list[Sample] = []
        images: list[Loaded] = []
        bad: dict[int, str] = {}
        for own in drawn:
            if isinstance(own, DataError):
                return own
            samples.append(own.sample)
            images.append(own.inputs)
            bad |= own.bad
        inputs = {name: stacked([own[name] for own in images]) for name in images[0]}
        strings: list[str] = []
        tokens: dict[str, Tensor] = {}
        for name, view in self.texts.items():
            if self.store is not None and isinstance(view, TextView) and view.policy == "same":
                inputs[name] = self.store([sample.caption for sample in samples])
                continue
            before, strings = strings, [view(sample) for sample in samples]
            if strings != before:  # two passes of the same captions have the same tokens
                tokens = self.tokenize(strings)
            inputs[name] = tokens
        rows = [sample.caption for sample in samples]
        return Batch(
            inputs,
            image_ids=torch.tensor([sample.image for sample in samples]),
            caption_ids=torch.from_numpy(self.pairs.caption_ids[rows]),
            caption_rows=torch.tensor(rows),
            bad=bad,
        )


def stacked(inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Inputs of several images as a batch."""
    return dict(default_collate(inputs))  # in a worker straight into shared memory


def pair_loader(
    pairs: Pairs,
    batches: Iterable[list[Sample]],
    augments: Mapping[str, Augment],
    texts: Mapping[str, TextOf],
    tokenize: Tokenize,
    workers: int,
    stand_in: StandIn | None = None,
    at_work: AtWork | None = None,
    known_bad: Collection[int] = (),
    draft: int | None = None,
    store: TokenStore | None = None,
) -> Generator[Batch, None, None]:
    """One iterator over all the `batches` of a run, so that workers live as long as the run does.

    Workers hand over a few images at a time, so that what waits in memory does not grow with the batch.

    Args:
        pairs: the data.
        batches: this process's samples, step by step.
        augments: for each kind of features that come from pixels, image to pixels.
        texts: for each kind that comes from tokens, sample to string.
        tokenize: strings to tokens.
        workers: loader processes; 0 loads here.
        stand_in: what takes the place of a sample whose image cannot be had; None: nothing does.
        at_work: where workers say what they are at.
        known_bad: positions of images that are known to be such.
        draft: short side in pixels down to which a JPEG may be decoded at a half, a quarter or an eighth of its size.
        store: keeps the tokens of the captions themselves; None: they are made each time.

    Raises:
        DataError: an image that is due cannot be decoded, nor one of those that would stand in for it.
        RuntimeError: a worker died, in the words of torch: "DataLoader worker …".
    """
    # More workers than cores only get into each other's way; the batches are the same whatever their number.
    workers = min(workers, os.cpu_count() or 1) if augments else 0
    chunks = _Chunks(batches, _CHUNK if workers else None)
    loader: DataLoader[_Drawn | DataError] = DataLoader(
        _Images(pairs, augments, stand_in, frozenset(known_bad), at_work or AtWork(pairs), draft),
        batch_sampler=chunks,
        collate_fn=_Collate(pairs, texts, tokenize, store),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=start_worker,
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
            yield joined(arrived)
            arrived = []


def _from_living(loader: DataLoader[_Drawn | DataError]) -> Iterator[Batch | DataError]:
    """What the loader gives. A worker that dies while it hands a chunk over is met here as a lost connection."""
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not loader.num_workers:
            raise
        raise RuntimeError(f"DataLoader worker is gone: {str(error) or type(error).__name__}") from error


def start_worker(worker: int) -> None:
    """What a loader worker does first."""
    # The threads of the tokenizer do not survive the fork: in parallel it would wait for them for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _Images):
        Image.MAX_IMAGE_PIXELS = info.dataset.max_pixels
    sys.excepthook = _unless_the_run_is_gone
    _leave_signals_to_the_run()


def _unless_the_run_is_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What threads of a worker could not deal with; that the run ended while they talked to it is no news."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


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


def joined(chunks: list[Batch]) -> Batch:
    """Rows one below the other."""
    if len(chunks) == 1:
        return chunks[0]
    return Batch(
        {name: _joined_inputs([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs},
        image_ids=torch.cat([chunk.image_ids for chunk in chunks]),
        caption_ids=torch.cat([chunk.caption_ids for chunk in chunks]),
        caption_rows=torch.cat([chunk.caption_rows for chunk in chunks]),
        bad={image: reason for chunk in chunks for image, reason in chunk.bad.items()},
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
        joined[name] = _cat(values)
    return joined


def _cat(parts: list[Tensor]) -> Tensor:
    """One below the other; where there is a GPU in memory that it reads by itself, while the processor goes on."""
    if not torch.cuda.is_available():
        return torch.cat(parts)
    rows = sum(len(part) for part in parts)
    whole = torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=whole)
