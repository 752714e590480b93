"""Encoding of images and strings with a tower, in batches and without gradients."""

from collections.abc import Callable, Iterable, Sequence
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
from clipkit.models.decoder import Decoder
from clipkit.models.decoding import MANY, decoded
from clipkit.models.devices import is_accelerator
from clipkit.models.exact_pixels import exact_pixels
from clipkit.models.preprocess import channels_last
from clipkit.models.towers import ImageTower, TextTower, Tower

# Batch sizes on a CPU: larger activations exceed its cache. On two cores, an EfficientNet-Lite0 encoded 200 images per
# second in batches of 8, and 60 in batches of 64.
_CPU_BATCH = 8
_CPU_STRINGS = 256

# Number of inputs of one forward pass that keep an accelerator busy.
_ACCELERATOR_BATCH = 256
_TOKENS = 131_072

# Number of strings that are tokenized together and then sorted into batches.
_TOKENIZED = 16_384

# Number of features that are kept on the device before they are copied.
_ROWS = 65_536

# Function from a batch of inputs by name to features: a whole tower, or its trunk.
Through = Callable[[dict[str, Tensor]], Tensor]

# True: show a progress bar; or a function that receives the number of items after each batch.
Progress = bool | Callable[[int], object]


def listed_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return a single image or several as a list.

    Raises:
        DataError: the argument is not an image or an iterable.
    """
    if isinstance(images, str | Path | Stored | Image.Image | np.ndarray):
        return [images]
    if not isinstance(images, Iterable):
        raise DataError(f"{kind_of(images)} is not an image; give paths, PIL images or uint8 arrays")
    return list(images)


def listed_strings(texts: str | Iterable[str]) -> list[str]:
    """Return a single string or several as a list.

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
) -> Float[Tensor, "N W"]:
    """Return the output of `through` for every image, in float32 on the CPU.

    Threads decode images in advance. On an accelerator with many images, processes decode them instead.

    Args:
        tower: tower whose preprocessing is used.
        images: paths, PIL images or arrays.
        through: module to run: the tower or its trunk.
        batch_size: images per forward pass; None: chosen for the device.
        device: device of the tower.
        progress: True: show a progress bar; or a function that receives the number of items after each batch.
        bad: receives the reasons why images are unreadable, by position; their rows have arbitrary values.

    Raises:
        DataError: an image is unreadable, and `bad` is None.
        UserError: the batch size is not positive, or a process that decodes images was killed.
    """
    _check_batch_size(batch_size)
    if not len(images):  # only a forward pass gives the width
        return encode_images(tower, [Image.new("RGB", (64, 64))], through, batch_size, device)[:0]
    fast = is_accelerator(device)
    size = batch_size or (_ACCELERATOR_BATCH if fast else _CPU_BATCH)
    if device.type == "cpu":
        size = min(size, _CPU_BATCH)
    dtype = next((parameter.dtype for parameter in tower.parameters()), torch.float32)
    exact = exact_pixels(tower.preprocess, device, dtype) if fast and len(images) >= MANY else None
    decoder = Decoder(tower.preprocess, images, exact is not None, exact is not None and exact.resize is not None)
    bar = _bar(len(images), "images", progress)
    on_batch = progress if callable(progress) else bar.update
    rows = _Rows()
    batches = decoded(decoder, size, fast, _Copies(device))
    with torch.inference_mode(), _precision(tower, device), bar, closing(batches) as source:
        for batch in source:
            if batch.errors and bad is None:
                raise next(iter(batch.errors.values()))
            if bad is not None:
                bad.update({position: str(error) for position, error in batch.errors.items()})
            inputs = batch.inputs
            if exact is None:
                inputs = {
                    name: v.to(dtype) if v.is_floating_point() else v for name, v in channels_last(inputs).items()
                }
            else:
                inputs = {"pixel_values": exact(inputs["content"], batch.sizes)}
            rows.add(through(inputs))
            on_batch(len(batch))
    return rows.all()


def encode_strings(
    tower: TextTower,
    texts: Sequence[str],
    through: Through,
    batch_size: int | None,
    device: torch.device,
    progress: Progress = False,
) -> Float[Tensor, "M W"]:
    """Return the output of `through` for every string, in float32 on the CPU. Identical strings are encoded once.

    Args:
        tower: tower whose tokenizer is used.
        texts: strings.
        through: module to run: the tower or its trunk.
        batch_size: maximum number of strings per forward pass, of similar lengths; None: chosen for the device.
        device: device of the tower.
        progress: True: show a progress bar; or a function that receives the number of items after each batch.

    Raises:
        UserError: the batch size is not positive.
    """
    _check_batch_size(batch_size)
    if not len(texts):
        return encode_strings(tower, [""], through, batch_size, device)[:0]
    fast = is_accelerator(device)
    most_rows = batch_size or (_TOKENS if fast else _CPU_STRINGS)
    # An accelerator works on one chunk while the next one is tokenized.
    step = _TOKENIZED // 4 if fast else _TOKENIZED
    by_length = sorted(dict.fromkeys(texts), key=len)
    order: list[Tensor] = []
    rows = _Rows()
    copied = _Copies(device)
    bar = _bar(len(by_length), "captions", progress)
    on_batch = progress if callable(progress) else bar.update
    with torch.inference_mode(), _precision(tower, device), bar:
        for start in range(0, len(by_length), step):
            tokens = tower.tokenize(by_length[start : start + step])
            # Sorting by number of tokens, not letters, saves a fifth of the padding in batches of 256 prompts.
            lengths, by_tokens = _lengths(tower, tokens)
            order.append(by_tokens + start)
            for part in by_tokens.split(_parts(lengths, most_rows, _TOKENS if fast else None)):
                batch = tower.cut_padding({name: values[part] for name, values in tokens.items()})
                rows.add(through({name: copied(values) for name, values in batch.items()}))
                on_batch(len(part))
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
    """Return a context in which the tower computes in its autocast type.

    The weights are cast in each batch, because autocast has no cache in inference mode; this takes a few percent of the
    time.
    """
    return nullcontext() if tower.autocast is None else torch.autocast(device.type, tower.autocast)


class _Copies:
    """Copies tensors to a device while the device computes. On a GPU, a separate stream copies."""

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
    """Features that stay on the device until many are copied at once, because each copy waits for the device."""

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
    """Return the lengths and positions of rows, sorted by length; in original order if padding is never removed."""
    count, full = next(iter(tokens.values())).shape
    if "attention_mask" not in tokens:
        return [full] * count, torch.arange(count)
    lengths, order = tokens["attention_mask"].sum(dim=1).sort(stable=True)
    return (lengths.tolist() if tower.padding_may_be_cut else [full] * count), order


def _parts(lengths: list[int], most_rows: int, most_tokens: int | None) -> list[int]:
    """Split rows, sorted by length, into parts with at most `most_tokens` tokens after padding."""
    sizes = [0]
    for length in lengths:
        if sizes[-1] == most_rows or (most_tokens and sizes[-1] and (sizes[-1] + 1) * length > most_tokens):
            sizes.append(0)
        sizes[-1] += 1
    return sizes
