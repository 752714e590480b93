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
from tqdm import tqdm

from clipkit.errors import DataError, UserError, check_text
from clipkit.images import ImageLike, Stored, kind_of
from clipkit.models.decoding import MANY, Decoder, decoded, stacked
from clipkit.models.exact_pixels import looked_up
from clipkit.models.preprocess import Inputs
from clipkit.models.towers import ImageTower, TextTower, Tower

# Larger activations exceed the CPU's cache and are freed after each layer: on two cores an EfficientNet-Lite0 encoded
# 200 images per second in batches of 8, and 60 in batches of 64.
_CPU_BATCH = 8
_CPU_STRINGS = 256

# Inputs of one forward pass that keep an accelerator busy.
_ACCELERATOR_BATCH = 256
_TOKENS = 65_536

# Strings that are tokenized together and then sorted into batches.
_TOKENIZED = 16_384

# Features that are kept on the device.
_ROWS = 65_536

# Function from a batch of inputs by name to features: a whole tower, or its trunk.
Through = Callable[[dict[str, Tensor]], Tensor]


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
    progress: bool = False,
    bad: dict[int, str] | None = None,
) -> Float[Tensor, "N W"]:
    """Return the output of `through` for every image, in float32 on the CPU.

    Threads decode images in advance; if there are many images and the device is an accelerator, processes do.

    Args:
        tower: tower whose preprocessing is used.
        images: paths, PIL images or arrays.
        through: the tower or its trunk.
        batch_size: images per forward pass; None: as many as suit the device.
        device: device of the tower.
        progress: show a progress bar.
        bad: receives the reasons why images are unreadable, by position; their rows have arbitrary values.

    Raises:
        DataError: an image is unreadable, and `bad` is None.
        UserError: the batch size is not positive, or a process that decodes images was killed.
    """
    _check_batch_size(batch_size)
    if not len(images):  # only a forward pass knows the width
        return encode_images(tower, [Image.new("RGB", (64, 64))], through, batch_size, device)[:0]
    fast = is_accelerator(device)
    size = batch_size or (_ACCELERATOR_BATCH if fast else _CPU_BATCH)
    if device.type == "cpu":
        size = min(size, _CPU_BATCH)
    decoder = Decoder(tower.preprocess, images, as_bytes=fast and len(images) >= MANY)
    dtype = next((parameter.dtype for parameter in tower.parameters()), torch.float32)
    table = None if decoder.table is None else decoder.table.to(device, dtype)
    bar = tqdm(total=len(images), desc="images", unit="", disable=None if progress else True, leave=False)
    rows = _Rows()
    with torch.inference_mode(), _precision(tower, device), bar, closing(decoded(decoder, size, fast)) as batches:
        for batch in batches:
            if batch.errors and bad is None:
                raise next(iter(batch.errors.values()))
            if bad is not None:
                bad.update({position: str(error) for position, error in batch.errors.items()})
            inputs = _moved(batch.inputs, device)
            if table is None:
                inputs = {
                    name: v.to(dtype) if v.is_floating_point() else v for name, v in channels_last(inputs).items()
                }
            else:
                inputs = {"pixel_values": looked_up(table, inputs["pixel_values"])}
            rows.add(through(inputs))
            bar.update(len(batch))
    return rows.all()


def channels_last(inputs: Inputs) -> Inputs:
    """Store pixels with channels last in memory, which makes convolutions up to twice as fast."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in inputs.items()
    }


def stack_inputs(images: Sequence[Inputs]) -> dict[str, Tensor]:
    """Stack the inputs of several images to a batch."""
    return channels_last(stacked(images))


def encode_strings(
    tower: TextTower,
    texts: Sequence[str],
    through: Through,
    batch_size: int | None,
    device: torch.device,
    progress: bool = False,
) -> Float[Tensor, "M W"]:
    """Return the output of `through` for every string, in float32 on the CPU. Identical strings are encoded once.

    Args:
        tower: tower whose tokenizer is used.
        texts: strings.
        through: the tower or its trunk.
        batch_size: maximum number of strings per forward pass, of similar lengths; None: as many as suit the device.
        device: device of the tower.
        progress: show a progress bar.

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
    bar = tqdm(total=len(by_length), desc="captions", unit="", disable=None if progress else True, leave=False)
    with torch.inference_mode(), _precision(tower, device), bar:
        for start in range(0, len(by_length), step):
            tokens = tower.tokenize(by_length[start : start + step])
            # Sorting by tokens instead of letters saves a fifth of the padding in batches of 256 prompts.
            lengths, by_tokens = _lengths(tower, tokens)
            order.append(by_tokens + start)
            for part in by_tokens.split(_parts(lengths, most_rows, _TOKENS if fast else None)):
                batch = tower.cut_padding({name: values[part] for name, values in tokens.items()})
                rows.add(through(_moved(batch, device)))
                bar.update(len(part))
    row_of = torch.empty(len(by_length), dtype=torch.int64)
    row_of[torch.cat(order)] = torch.arange(len(by_length))
    position_of = dict(zip(by_length, row_of.tolist(), strict=True))
    return rows.all()[[position_of[text] for text in texts]]


def is_accelerator(device: torch.device) -> bool:
    """Return whether the device works while this process prepares its next inputs."""
    return device.type not in ("cpu", "meta")


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size {batch_size} is invalid; give 1 or more")


def _precision(tower: Tower, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which the tower computes in its autocast type.

    The weights are cast in each batch, which takes a few percent of its time: no cache serves inference mode.
    """
    return nullcontext() if tower.autocast is None else torch.autocast(device.type, tower.autocast)


def _moved(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy inputs to the device without waiting for it."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in inputs.items()}
    pinned = {name: value if value.is_pinned() else value.pin_memory() for name, value in inputs.items()}
    return {name: value.to(device, non_blocking=True) for name, value in pinned.items()}


class _Rows:
    """Features that stay on the device until many of them are copied at once, because each copy waits for it."""

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
    """Return the lengths of sorted rows, and the row numbers, in the original order if padding is never removed."""
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
