"""Encoding of images and strings with a tower, in batches and without gradients."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from clipkit.errors import DataError, UserError, check_text
from clipkit.images import ImageLike, Stored, kind_of
from clipkit.models.decoder import DecodedBatch, Decoder, batches_of
from clipkit.models.decoding import MANY, decoded
from clipkit.models.devices import is_accelerator
from clipkit.models.exact_pixels import exact_pixels
from clipkit.models.fused_norms import with_fused_norms
from clipkit.models.preprocess import channels_last
from clipkit.models.side_by_side import side_by_side, threads_for
from clipkit.models.towers import ImageTower, TextTower, Tower

# Batch sizes on a CPU. In one thread per core, the activations of a small tower fit into the core's cache, and the
# weights of a large one are read for several images (figures: docs/speed.md).
_CPU_BATCH = 8
_THREAD_BATCH = 2
_LARGE = 50_000_000  # smallest number of weights of a tower for which threads use _CPU_BATCH
_CPU_STRINGS = 256
_THREAD_STRINGS = 64

# Smallest number of images for which fused batch normalizations save more time than the check of their results takes.
_FUSED_FROM = 256

# Number of inputs of one forward pass that keep an accelerator busy.
_ACCELERATOR_BATCH = 256
_TOKENS = 131_072

# Number of strings that are tokenized together and then sorted into batches.
_TOKENIZED = 16_384

# Number of features that are kept on the device before they are copied.
_ROWS = 65_536

# True: show a progress bar; or a function that receives the number of items after each batch.
Progress = bool | Callable[[int], object]

Inputs = dict[str, Tensor]
# Function from (tower, inputs of a batch by name) to outputs. Threads call it with copies of the tower.
Through = Callable[[Any, Inputs], Any]


def tower_features(tower: Tower, inputs: Inputs) -> Float[Tensor, "B D"]:
    """Return the features that a tower computes for a batch, before normalization."""
    return tower(inputs)


def trunk_features(tower: Tower, inputs: Inputs) -> Float[Tensor, "B W"]:
    """Return the output of a tower's trunk for a batch."""
    return tower.trunk(**inputs)


def listed_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one image or several images as a list.

    Raises:
        DataError: the argument is neither an image nor an iterable.
    """
    if isinstance(images, str | Path | Stored | Image.Image | np.ndarray):
        return [images]
    if not isinstance(images, Iterable):
        raise DataError(f"{kind_of(images)} is not an image; give paths, PIL images or uint8 arrays")
    return list(images)


def listed_strings(texts: str | Iterable[str]) -> list[str]:
    """Return one string or several strings as a list.

    Raises:
        DataError: an item is not a string.
    """
    if not isinstance(texts, Iterable):
        raise DataError(f"{kind_of(texts)} is not a text; give strings")
    several = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(several):
        if not isinstance(text, str):
            raise DataError(f"texts[{position}] is {kind_of(text)}, not a string; give strings")
        check_text(text)
    return several


def encode_images(
    tower: ImageTower,
    images: Sequence[ImageLike],
    through: Through,
    batch_size: int | None,
    device: torch.device,
    progress: Progress = False,
    bad: dict[int, str] | None = None,
    keep: Callable[[Any], Tensor] | None = None,
) -> Float[Tensor, "N W"]:
    """Encode all images with the function `through`, and return the outputs in float32 on the CPU.

    Args:
        tower: tower whose preprocessing is used.
        images: paths, PIL images or arrays.
        through: function from a tower and a batch of inputs to outputs, e.g. `tower_features` or `trunk_features`.
        batch_size: maximum number of images per forward pass; None: chosen for the device.
        device: device of the tower.
        progress: True shows a progress bar. A function is called after each batch with the number of images in it.
        bad: dict that collects the errors of unreadable images, by position. Their rows in the result are arbitrary.
            None: an unreadable image raises an error.
        keep: function from an output of `through` to the rows to return, called in the order of the images.

    Raises:
        DataError: an image is unreadable, and `bad` is None.
        UserError: the batch size is not positive, or a process that decodes images was killed.
    """
    _check_batch_size(batch_size)
    if not len(images):  # the width of the result is known only after a forward pass
        return encode_images(tower, [Image.new("RGB", (64, 64))], through, batch_size, device, keep=keep)[:0]
    bar = _bar(len(images), "images", progress)
    on_batch = progress if callable(progress) else bar.update
    rows = _Rows()
    with torch.inference_mode(), bar, closing(_image_outputs(tower, images, through, batch_size, device)) as outputs:
        for batch, output in outputs:
            if batch.errors and bad is None:
                raise next(iter(batch.errors.values()))
            if bad is not None:
                bad.update({position: str(error) for position, error in batch.errors.items()})
            rows.add(output if keep is None else keep(output))
            on_batch(len(batch))
    return rows.all()


def _image_outputs(
    tower: ImageTower, images: Sequence[ImageLike], through: Through, batch_size: int | None, device: torch.device
) -> Generator[tuple[DecodedBatch, Any], None, None]:
    """Yield each decoded batch with its output of `through`, in order."""
    dtype = next((parameter.dtype for parameter in tower.parameters()), torch.float32)
    fast = is_accelerator(device)
    exact = exact_pixels(tower.preprocess, device, dtype) if fast and len(images) >= MANY else None
    decoder = Decoder(tower.preprocess, images, exact is not None, exact is not None and exact.resize is not None)

    def output(tower: ImageTower, batch: DecodedBatch) -> Any:
        if exact is None:
            inputs = channels_last(batch.inputs)
            inputs = {name: v.to(dtype) if v.is_floating_point() else v for name, v in inputs.items()}
        else:
            inputs = {"pixel_values": exact(batch.inputs["content"], batch.sizes)}
        with torch.inference_mode(), _precision(tower, device):
            return through(tower, inputs)

    def of_positions(tower: ImageTower, positions: range) -> tuple[DecodedBatch, Any]:
        batch = decoder.batch(positions, map(decoder, positions))
        return batch, output(tower, batch)

    if device.type == "cpu" and len(images) >= _FUSED_FROM and dtype == torch.float32:
        tower = with_fused_norms(tower)
    if not fast:
        batches = batches_of(len(images), cpu_batch(tower, batch_size))
        threads = threads_for(tower, len(batches))
        if threads > 1:
            yield from side_by_side(tower, batches, of_positions, threads, [tower.preprocess])
            return
    size = batch_size or (_ACCELERATOR_BATCH if fast else _CPU_BATCH)
    size = min(size, _CPU_BATCH) if device.type == "cpu" else size
    with closing(decoded(decoder, size, fast, _Copies(device))) as source:
        for batch in source:
            yield batch, output(tower, batch)


def cpu_batch(tower: ImageTower, batch_size: int | None) -> int:
    """Return the number of images per forward pass of one CPU thread, at most `batch_size`."""
    small = sum(parameter.numel() for parameter in tower.parameters()) < _LARGE
    most = _THREAD_BATCH if small else _CPU_BATCH
    return min(batch_size or most, most)


def encode_strings(
    tower: TextTower,
    texts: Sequence[str],
    through: Through,
    batch_size: int | None,
    device: torch.device,
    progress: Progress = False,
    keep: Callable[[Any], Tensor] | None = None,
) -> Float[Tensor, "M W"]:
    """Encode all strings with the function `through`, and return the outputs in float32 on the CPU.

    Identical strings are encoded only once.

    Args:
        tower: tower whose tokenizer is used.
        texts: strings.
        through: function from a tower and a batch of inputs to outputs, e.g. `tower_features` or `trunk_features`.
        batch_size: maximum number of strings per forward pass; None: chosen for the device.
        device: device of the tower.
        progress: True shows a progress bar. A function is called after each batch with the number of strings in it.
        keep: function from an output of `through` to the rows to return. It is called in the order of the batches,
            which is not the order of `texts`.

    Raises:
        UserError: the batch size is not positive.
    """
    _check_batch_size(batch_size)
    if not len(texts):
        return encode_strings(tower, [""], through, batch_size, device, keep=keep)[:0]
    fast = is_accelerator(device)
    # An accelerator works on one chunk while the next one is tokenized.
    step = _TOKENIZED // 4 if fast else _TOKENIZED
    by_length = sorted(dict.fromkeys(texts), key=len)
    order: list[Tensor] = []
    rows = _Rows()
    copied = _Copies(device)
    bar = _bar(len(by_length), "captions", progress)
    on_batch = progress if callable(progress) else bar.update

    def output(tower: TextTower, batch: Inputs) -> tuple[int, Any]:
        inputs = {name: copied(values) for name, values in batch.items()}
        with torch.inference_mode(), _precision(tower, device):
            return len(next(iter(batch.values()))), through(tower, inputs)

    with torch.inference_mode(), bar:
        for start in range(0, len(by_length), step):
            tokens = tower.tokenize(by_length[start : start + step])
            # Sorting by number of tokens, not letters, saves a fifth of the padding in batches of 256 prompts.
            lengths, by_tokens = _lengths(tower, tokens)
            order.append(by_tokens + start)
            few = min(batch_size or _THREAD_STRINGS, _THREAD_STRINGS)
            threads = 1 if fast else threads_for(tower, -(-len(lengths) // few))
            most_rows = few if threads > 1 else batch_size or (_TOKENS if fast else _CPU_STRINGS)
            parts = by_tokens.split(_parts(lengths, most_rows, _TOKENS if fast else None))
            batches = [tower.cut_padding({name: values[part] for name, values in tokens.items()}) for part in parts]
            with closing(side_by_side(tower, batches, output, threads, [tower.tokenize])) as outputs:
                for count, result in outputs:
                    rows.add(result if keep is None else keep(result))
                    on_batch(count)
    row_of = torch.empty(len(by_length), dtype=torch.int64)
    row_of[torch.cat(order)] = torch.arange(len(by_length))
    position_of = dict(zip(by_length, row_of.tolist(), strict=True))
    return rows.all()[[position_of[text] for text in texts]]


def _bar(total: int, what: str, progress: Progress) -> "tqdm[Any]":
    return tqdm(total=total, desc=what, unit="", disable=None if progress is True else True, leave=False)


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size {batch_size} is invalid; give 1 or more")


def _precision(tower: Tower, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which the tower computes in its autocast type, if it has one."""
    # Autocast has no cache in inference mode, so it casts the weights in each batch (a few percent of the time).
    return nullcontext() if tower.autocast is None else torch.autocast(device.type, tower.autocast)


class _Copies:
    """Function that copies tensors to a device while the device computes.

    On a CUDA GPU, the copies run in a separate stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, values: Tensor) -> Tensor:
        if self.stream is None:
            return values.to(self.device, copy=is_accelerator(self.device))
        work = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            copy = values.pin_memory().to(self.device, non_blocking=True)
        work.wait_stream(self.stream)
        copy.record_stream(work)
        return copy


class _Rows:
    """Collects features, and copies many of them to the CPU at once, because each copy waits for the device."""

    def __init__(self) -> None:
        self.waiting: list[Tensor] = []
        self.copied: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        self.waiting.append(features.float())
        if sum(map(len, self.waiting)) >= _ROWS:
            self._copy()

    def all(self) -> Tensor:
        self._copy()
        return torch.cat(self.copied)

    def _copy(self) -> None:
        if self.waiting:
            self.copied.append(torch.cat(self.waiting).cpu())
            self.waiting = []


def _lengths(tower: TextTower, tokens: dict[str, Tensor]) -> tuple[list[int], Tensor]:
    """Sort M tokenized strings by token count, and return the counts and the permutation.

    The tokens have the shape (M, L). If padding cannot be removed, each count is L. Without an attention mask, the
    order does not change.
    """
    count, full = next(iter(tokens.values())).shape
    if "attention_mask" not in tokens:
        return [full] * count, torch.arange(count)
    lengths, order = tokens["attention_mask"].sum(dim=1).sort(stable=True)
    return (lengths.tolist() if tower.padding_may_be_cut else [full] * count), order


def _parts(lengths: list[int], most_rows: int, most_tokens: int | None) -> list[int]:
    """Return the batch sizes for strings that are sorted by token count.

    Args:
        lengths: token counts, in ascending order.
        most_rows: maximum number of strings per batch.
        most_tokens: maximum number of tokens per batch, including padding; None: no limit.
    """
    sizes = [0]
    for length in lengths:
        if sizes[-1] == most_rows or (most_tokens and sizes[-1] and (sizes[-1] + 1) * length > most_tokens):
            sizes.append(0)
        sizes[-1] += 1
    return sizes
