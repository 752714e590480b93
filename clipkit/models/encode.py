"""Encoding of images and strings with a tower, in batches and without gradients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipkit.errors import DataError, UserError, check_text
from clipkit.images import ImageLike, Stored, kind_of, open_image
from clipkit.models.preprocess import Inputs
from clipkit.models.towers import ImageTower, TextTower

# Larger activations exceed the CPU's cache and are freed after each layer: on two cores an EfficientNet-Lite0 encoded
# 200 images per second in batches of 8, and 60 in batches of 64.
_CPU_BATCH = 8

# Strings that are tokenized together and then sorted into batches.
_TOKENIZED = 16_384

T = TypeVar("T")
R = TypeVar("R")

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
    batch_size: int,
    device: torch.device,
    progress: bool = False,
    bad: dict[int, str] | None = None,
) -> Float[Tensor, "N W"]:
    """Return the output of `through` for every image, in float32 on the CPU. Threads decode images in advance.

    Args:
        tower: tower whose preprocessing is used.
        images: paths, PIL images or arrays.
        through: the tower or its trunk.
        batch_size: images per forward pass.
        device: device of the tower.
        progress: show a progress bar.
        bad: receives the reasons why images are unreadable, by position; their rows have arbitrary values.

    Raises:
        DataError: an image is unreadable, and `bad` is None.
        UserError: the batch size is not positive.
    """
    _check_batch_size(batch_size)
    if not len(images):  # only a forward pass knows the width
        return encode_images(tower, [Image.new("RGB", (64, 64))], through, batch_size, device)[:0]

    def inputs_of(position: int) -> Inputs:
        try:
            return tower.preprocess(open_image(images[position]))
        except DataError as error:
            if bad is None:
                raise
            bad[position] = str(error)
            return tower.preprocess(Image.new("RGB", (224, 224)))

    dtype = next((parameter.dtype for parameter in tower.parameters()), torch.float32)
    if device.type == "cpu":
        batch_size = min(batch_size, _CPU_BATCH)
    bar = tqdm(total=len(images), desc="images", unit="", disable=None if progress else True, leave=False)
    features = []
    with torch.inference_mode(), bar, ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        for decoded in _ahead(pool, inputs_of, range(len(images)), batch_size):
            batch = {
                name: value.to(device, dtype if value.is_floating_point() else None)
                for name, value in stack_inputs(decoded).items()
            }
            features.append(through(batch).float().cpu())
            bar.update(len(decoded))
    return torch.cat(features)


def stack_inputs(images: Sequence[Inputs]) -> dict[str, Tensor]:
    """Stack the inputs of several images to a batch."""
    return channels_last({name: torch.stack([inputs[name] for inputs in images]) for name in images[0]})


def channels_last(inputs: Inputs) -> Inputs:
    """Store pixels with channels last in memory, which makes convolutions up to twice as fast."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in inputs.items()
    }


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T], batch_size: int) -> Iterator[list[R]]:
    """Yield batches of results while the next batch is computed."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    waiting = [pool.submit(work, item) for item in batches[0]] if batches else []
    for following in [*batches[1:], []]:
        ready, waiting = waiting, [pool.submit(work, item) for item in following]
        yield [future.result() for future in ready]


def encode_strings(
    tower: TextTower,
    texts: Sequence[str],
    through: Through,
    batch_size: int,
    device: torch.device,
    progress: bool = False,
) -> Float[Tensor, "M W"]:
    """Return the output of `through` for every string, in float32 on the CPU. Identical strings are encoded once.

    Args:
        tower: tower whose tokenizer is used.
        texts: strings.
        through: the tower or its trunk.
        batch_size: strings per forward pass, of similar lengths.
        device: device of the tower.
        progress: show a progress bar.

    Raises:
        UserError: the batch size is not positive.
    """
    _check_batch_size(batch_size)
    if not len(texts):
        return encode_strings(tower, [""], through, batch_size, device)[:0]
    by_length = sorted(dict.fromkeys(texts), key=len)
    row_of: dict[str, int] = {}
    features: list[Tensor] = []
    bar = tqdm(total=len(by_length), desc="captions", unit="", disable=None if progress else True, leave=False)
    with torch.inference_mode(), bar:
        for start in range(0, len(by_length), _TOKENIZED):
            chunk = by_length[start : start + _TOKENIZED]
            tokens = tower.tokenize(chunk)
            # Sorting by tokens instead of letters saves a fifth of the padding in batches of 256 prompts.
            order = _by_tokens(tokens)
            for rows in order.split(batch_size):
                batch = tower.cut_padding({name: values[rows] for name, values in tokens.items()})
                features.append(through({name: values.to(device) for name, values in batch.items()}).float().cpu())
                bar.update(len(rows))
            for row in order.tolist():
                row_of[chunk[row]] = len(row_of)
    return torch.cat(features)[[row_of[text] for text in texts]]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is invalid; give 1 or more")


def _by_tokens(tokens: dict[str, Tensor]) -> Tensor:
    """Return row numbers sorted by token count; in the original order if padding is never removed."""
    if "attention_mask" not in tokens:
        return torch.arange(len(next(iter(tokens.values()))))
    return tokens["attention_mask"].sum(dim=1).argsort(stable=True)
