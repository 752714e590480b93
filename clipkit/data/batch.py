"""Batches, and how samples become their inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from clipkit.data.text_views import TextView
from clipkit.data.tokens import Tokenize, TokenStore
from clipkit.images import Stored, open_image

# (image, epoch, identity of the image) -> inputs of the image tower by name
Augment = Callable[[Image.Image, int, int], dict[str, Tensor]]
# Inputs by the name of their features, then by the name of the tower's argument.
Inputs = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Slice of a global batch that one process handles: inputs and identities."""

    inputs: Inputs
    image_ids: Int[Tensor, " B"]
    """Position of each image in the source; for a stream, a hash of its location."""
    caption_ids: Int[Tensor, " B"]
    """Identity of each caption, equal for equal strings."""
    caption_rows: Int[Tensor, " B"]
    """Position of each caption in the source."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Reasons why images of this batch were replaced, by image id."""

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class InputMaker:
    """Turns samples into the inputs of a batch.

    Args:
        augments: for each kind of features from images, a function from an image to the inputs.
        texts: for each kind of features from text, a function from a sample to a string.
        tokenize: strings to tokens.
        draft: short side in pixels down to which a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size; None: decode it
            at full size.
        store: keeps tokens of captions, so that each is tokenized once; None: tokenize each time.
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
        """Collate samples.

        Args:
            samples: arguments of `texts`.
            images: inputs of the image of each sample.
            ids: image ids, caption ids and caption rows.
            bad: reasons why images were replaced, by image id.
        """
        inputs = {name: dict(default_collate([made[name] for made in images])) for name in images[0]}
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


def joined(chunks: list[Batch]) -> Batch:
    """Concatenate batches."""
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
    """Return some rows of a batch."""
    return Batch(
        {name: {key: value[rows] for key, value in inputs.items()} for name, inputs in batch.inputs.items()},
        batch.image_ids[rows],
        batch.caption_ids[rows],
        batch.caption_rows[rows],
        batch.bad,
    )


def _joined_inputs(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate inputs; tokens, which are padded to the longest of their chunk, are padded to the longest of all.

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
    """Concatenate tensors; with a GPU, in pinned memory, so that the copy to the device is asynchronous."""
    if not torch.cuda.is_available():
        return torch.cat(parts)
    rows = sum(len(part) for part in parts)
    whole = torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=whole)
