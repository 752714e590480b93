"""Batches of tower inputs, and the classes that build batches from samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from clipkit.data.slots import Inputs, Stack, empty
from clipkit.data.text_views import TextView
from clipkit.data.tokens import Tokenize, TokenStore
from clipkit.images import Stored, open_image

# (image, epoch, ID of the image) -> inputs of the image tower by name
Augment = Callable[[Image.Image, int, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Inputs of the towers for B samples, with the IDs of the images and captions.

    The samples are the rows of a global batch that one process handles, or a part of these rows (a chunk).
    """

    inputs: Inputs
    image_ids: Int[Tensor, " B"]
    """ID of each image: its position in the source; for a stream, a hash of its location."""
    caption_ids: Int[Tensor, " B"]
    """ID of each caption; equal strings have the same ID."""
    caption_rows: Int[Tensor, " B"]
    """Position of each caption in the source; for a stream, the ID of its image."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Reasons why images of this batch were replaced, by image ID."""

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class InputMaker:
    """Converts samples to the inputs of the towers.

    Args:
        augments: functions that convert an image to inputs. The keys are the names of the image features.
        texts: functions that convert a sample to a string. The keys are the names of the text features.
        tokenize: function from strings to tokens.
        draft: smallest short side in pixels to which the JPEG decoder may reduce an image (by 2, 4 or 8); None: no
            reduction.
        store: cache for the tokens of captions; None: tokenize the captions of each batch.
    """

    augments: Mapping[str, Augment]
    texts: Mapping[str, Callable[[Any], str]]
    tokenize: Tokenize
    draft: int | None = None
    store: TokenStore | None = None

    def of_image(self, image: Path | Stored, epoch: int, identity: int) -> Inputs:
        """Decode and augment an image, and return its inputs by name. `identity` is the ID of the image.

        Raises:
            DataError: the image is missing or cannot be decoded.
        """
        opened = open_image(image, self.draft)
        return {name: augment(opened, epoch, identity) for name, augment in self.augments.items()}

    def example(self) -> Inputs:
        """Return the inputs of a gray image, to determine the shapes and data types of the inputs."""
        gray = Image.new("RGB", (224, 224), (128, 128, 128))
        return {name: augment(gray, 0, 0) for name, augment in self.augments.items()}

    def batch(
        self,
        samples: Sequence[Any],
        images: Stack,
        ids: tuple[Tensor, Tensor, Tensor],
        bad: Mapping[int, str],
    ) -> Batch:
        """Build a batch from samples and the inputs of their images.

        Args:
            samples: samples of the batch; the functions in `texts` convert them to strings.
            images: inputs of the images, one row per sample.
            ids: `image_ids`, `caption_ids` and `caption_rows` of the `Batch`.
            bad: unreadable images that were replaced (image ID -> reason).
        """
        inputs = dict(images.inputs)
        strings: list[str] = []
        tokens: dict[str, Tensor] = {}
        for name, text_of in self.texts.items():
            if self.store is not None and isinstance(text_of, TextView) and text_of.policy == "same":
                inputs[name] = self.store([sample.caption for sample in samples])
                continue
            before, strings = strings, [text_of(sample) for sample in samples]
            if strings != before:  # text views with equal strings share their tokens
                tokens = self.tokenize(strings)
            inputs[name] = tokens
        return Batch(inputs, *ids, bad)


class BatchMemory:
    """Memory for the image inputs of batches: new CPU tensors, or other memory in a subclass."""

    def begin(self) -> None:
        """Prepare the memory for a new batch."""

    def empty(self, key: tuple[str, str], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor for one input of the batch.

        Args:
            key: names of the features and of the tower's argument, e.g. ("image", "pixel_values").
            shape: shape with all rows of the batch.
            dtype: data type.
        """
        return empty(shape, dtype)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy rows into a tensor of the batch. The caller may overwrite `source` after this call.

        Args:
            target: rows of a tensor that `empty` returned.
            source: values of these rows.
        """
        target.copy_(source)

    def end(self) -> None:
        """Wait until all copies are complete. After this call, the tensors of the batch can be used."""


class Assembly:
    """Builds a batch from smaller batches (chunks), each with the next rows of the batch.

    Args:
        rows: number of rows of the batch.
        memory: memory for the inputs of images; None: new tensors on the CPU.
    """

    def __init__(self, rows: int, memory: BatchMemory | None = None) -> None:
        self.rows = rows
        self.missing = rows
        self._memory = memory or BatchMemory()
        self._whole: Inputs = {}
        self._chunks: list[Batch] = []

    def add(self, chunk: Batch) -> None:
        """Copy a chunk to the next rows of the batch.

        The chunk must have at most `missing` rows, the number of rows that are still empty.
        """
        if not self._chunks:
            self._memory.begin()
        first = self.rows - self.missing
        rows = slice(first, first + len(chunk))
        small: Inputs = {}
        for name, values in chunk.inputs.items():
            small[name] = {}
            whole = self._whole.setdefault(name, {})
            for key, value in values.items():
                if value.ndim < 3:
                    small[name][key] = value.clone()
                    continue
                if key not in whole:
                    whole[key] = self._memory.empty((name, key), (self.rows, *value.shape[1:]), value.dtype)
                self._memory.copy(whole[key][rows], value)
        self._chunks.append(replace(chunk, inputs=small))
        self.missing -= len(chunk)

    def batch(self) -> Batch:
        """Return the complete batch. Call this method after all rows were added."""
        assert not self.missing
        self._memory.end()
        chunks = self._chunks
        return Batch(
            {name: {**_joined([chunk.inputs[name] for chunk in chunks]), **self._whole[name]} for name in self._whole},
            image_ids=torch.cat([chunk.image_ids for chunk in chunks]),
            caption_ids=torch.cat([chunk.caption_ids for chunk in chunks]),
            caption_rows=torch.cat([chunk.caption_rows for chunk in chunks]),
            bad={image: reason for chunk in chunks for image, reason in chunk.bad.items()},
        )


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Return the given rows of a batch as a new batch."""
    return Batch(
        {name: {key: value[rows] for key, value in inputs.items()} for name, inputs in batch.inputs.items()},
        batch.image_ids[rows],
        batch.caption_ids[rows],
        batch.caption_rows[rows],
        batch.bad,
    )


def _joined(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the inputs of several chunks.

    Tokens and attention masks are padded with zeros to the longest caption.
    """
    result = {}
    for name in chunks[0]:
        values = [chunk[name] for chunk in chunks]
        if values[0].ndim == 2:
            longest = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(value, (0, longest - value.shape[1])) for value in values]
        result[name] = torch.cat(values)
    return result
