"""Decoding and preprocessing of single images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from clipkit.errors import DataError
from clipkit.images import ImageLike, open_image
from clipkit.models.exact_resize import can_resize
from clipkit.models.preprocess import Inputs, Preprocess, Resize, stack_inputs

_MOST_BYTES = 4 << 20  # bytes of the pixels of an image that an accelerator resizes


@dataclass(frozen=True)
class DecodedBatch:
    """Batch of decoded images, with the errors of the unreadable images."""

    inputs: dict[str, Tensor]
    """The tower's inputs by name; or `content`, the pixels (H, W, 3) of one image after another as bytes."""
    sizes: list[tuple[int, int] | None]
    """Width and height of each image that the accelerator resizes."""
    errors: dict[int, DataError]
    """Errors by position in `Decoder.images`."""

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Decoded:
    """A decoded image: the tower's inputs, or the pixels as bytes under the name `content`.

    `size` is (width, height) if the accelerator must still resize the image, otherwise None.
    """

    inputs: Inputs
    size: tuple[int, int] | None = None


class Decoder:
    """Decodes and preprocesses images, and can leave the last steps to an accelerator.

    Args:
        preprocess: preprocessing of the tower.
        images: paths, stored files, PIL images or arrays.
        as_pixels: True returns uint8 pixels, so that the accelerator scales and normalizes them.
        resizes: True also leaves the resizing to the accelerator, for image sizes that it supports.
    """

    def __init__(
        self, preprocess: Preprocess, images: Sequence[ImageLike], as_pixels: bool = False, resizes: bool = False
    ) -> None:
        self.preprocess = preprocess
        self.images = images
        self.as_pixels = as_pixels
        self.steps = preprocess.steps if resizes and isinstance(preprocess.steps, Resize) else None

    def __call__(self, position: int, room: int = _MOST_BYTES) -> Decoded | DataError:
        """Return a decoded image, or the error of an unreadable image.

        Args:
            position: position in `images`.
            room: maximum size in bytes of an image that the accelerator resizes. The CPU resizes larger images.
        """
        try:
            return self._prepared(open_image(self.images[position]), room)
        except DataError as error:
            return error

    def batch(self, positions: Sequence[int], decoded: Iterable[Decoded | DataError]) -> DecodedBatch:
        """Return a batch of decoded images.

        Each unreadable image is replaced by a black image, and its error is in the batch.
        """
        errors: dict[int, DataError] = {}
        images: list[Decoded] = []
        for position, image in zip(positions, decoded, strict=True):
            if isinstance(image, DataError):
                errors[position] = image
                image = self.blank()
            images.append(image)
        return DecodedBatch(self.joined(images), [image.size for image in images], errors)

    def blank(self) -> Decoded:
        """Return the black image that replaces an unreadable image. It needs no resizing."""
        return self._prepared(Image.new("RGB", (224, 224)), 0)

    def joined(self, images: Sequence[Decoded]) -> dict[str, Tensor]:
        """Combine the inputs of several images into the inputs of a batch."""
        inputs = [image.inputs for image in images]
        if self.as_pixels:
            return {"content": torch.cat([each["content"] for each in inputs])}
        return stack_inputs(inputs)

    def _prepared(self, image: Image.Image, room: int) -> Decoded:
        preprocess = self.preprocess
        if not self.as_pixels or preprocess.pixels is None or preprocess.image_size is None:
            return Decoded(preprocess(image))
        fits = 3 * image.width * image.height <= min(room, _MOST_BYTES)
        if fits and self.steps is not None and can_resize(*image.size, self.steps, preprocess.image_size):
            return Decoded({"content": _flat(np.array(image))}, image.size)
        return Decoded({"content": _flat(preprocess.pixels(image))})


def _flat(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, " bytes"]:
    return torch.from_numpy(pixels).flatten()


def batches_of(count: int, batch_size: int) -> list[range]:
    """Split the positions 0 to `count` − 1 into batches."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
