"""Batches, and the conversion of samples to the inputs of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from clipkit.data.shared_memory import can_send_shared
from clipkit.data.text_views import TextView
from clipkit.data.tokens import Tokenize, TokenStore
from clipkit.images import Stored, open_image

# (image, epoch, ID of the image) -> inputs of the image tower by name
Augment = Callable[[Image.Image, int, int], dict[str, Tensor]]
# Inputs by name of the features for which they are used, then by name of the tower's argument.
Inputs = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Part of a global batch that one process handles: inputs, and IDs of images and captions."""

    inputs: Inputs
    image_ids: Int[Tensor, " B"]
    """ID of each image: its position in the source, or for a stream a hash of its location."""
    caption_ids: Int[Tensor, " B"]
    """ID of each caption; equal strings have the same ID."""
    caption_rows: Int[Tensor, " B"]
    """Position of each caption in the source."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Reasons why images of this batch were replaced, by image ID."""

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class InputMaker:
    """Converts samples to the inputs of a batch.

    Args:
        augments: for each kind of features from images, a function from an image to the inputs.
        texts: for each kind of features from text, a function from a sample to a string.
        tokenize: function from strings to tokens.
        draft: short side in pixels down to which a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size; None: decode it
            at full size.
        store: cache for the tokens of captions; None: tokenize each time.
    """

    augments: Mapping[str, Augment]
    texts: Mapping[str, Callable[[Any], str]]
    tokenize: Tokenize
    draft: int | None = None
    store: TokenStore | None = None

    def of_image(self, image: Path | Stored, epoch: int, identity: int) -> Inputs:
        """Decode and augment an image.

        Raises:
            DataError: the image is missing or cannot be decoded.
        """
        opened = open_image(image, self.draft)
        return {name: augment(opened, epoch, identity) for name, augment in self.augments.items()}

    def batch(
        self,
        samples: Sequence[Any],
        images: Sequence[Inputs],
        ids: tuple[Tensor, Tensor, Tensor],
        bad: Mapping[int, str],
    ) -> Batch:
        """Collate samples to a batch.

        Args:
            samples: samples, from which the functions in `texts` make strings.
            images: inputs of the image of each sample.
            ids: image IDs, caption IDs and caption rows.
            bad: reasons why images were replaced, by image ID.
        """
        inputs = {name: stacked([made[name] for made in images]) for name in images[0]}
        strings: list[str] = []
        tokens: dict[str, Tensor] = {}
        for name, text_of in self.texts.items():
            if self.store is not None and isinstance(text_of, TextView) and text_of.policy == "same":
                inputs[name] = self.store([sample.caption for sample in samples])
                continue
            before, strings = strings, [text_of(sample) for sample in samples]
            if strings != before:  # views that do not change the captions share their tokens
                tokens = self.tokenize(strings)
            inputs[name] = tokens
        return Batch(inputs, *ids, bad)


def stacked(inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the inputs of several images; in a loader worker directly into shared memory, if it has enough."""
    if can_send_shared(len(inputs) * sum(value.nbytes for value in inputs[0].values())):
        return dict(default_collate(inputs))
    return {name: torch.stack([one[name] for one in inputs]) for name in inputs[0]}


def joined(chunks: list[Batch]) -> Batch:
    """Concatenate several batches to one."""
    if len(chunks) == 1:
        return chunks[0]
    return Batch(
        {name: _joined_inputs([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs},
        image_ids=torch.cat([chunk.image_ids for chunk in chunks]),
        caption_ids=torch.cat([chunk.caption_ids for chunk in chunks]),
        caption_rows=torch.cat([chunk.caption_rows for chunk in chunks]),
        bad={image: reason for chunk in chunks for image, reason in chunk.bad.items()},
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Return a batch with some rows of a batch."""
    return Batch(
        {name: {key: value[rows] for key, value in inputs.items()} for name, inputs in batch.inputs.items()},
        batch.image_ids[rows],
        batch.caption_ids[rows],
        batch.caption_rows[rows],
        batch.bad,
    )


def _joined_inputs(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate inputs of several chunks, and pad their tokens to the longest caption of all chunks.

    The padding is zeros, also in the attention mask, which excludes it everywhere.
    """
    result = {}
    for name in chunks[0]:
        values = [chunk[name] for chunk in chunks]
        if values[0].ndim == 2:
            longest = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(value, (0, longest - value.shape[1])) for value in values]
        result[name] = _concatenated(values)
    return result


def _concatenated(parts: list[Tensor]) -> Tensor:
    """Concatenate tensors. If there is a GPU, use pinned memory, so that the copy to it is asynchronous."""
    if not torch.cuda.is_available():
        return torch.cat(parts)
    rows = sum(len(part) for part in parts)
    whole = torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=whole)
