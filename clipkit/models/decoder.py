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
    """A batch of images, as inputs of a tower or as pixels, with the errors of unreadable images."""

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
    """Inputs of the tower for one image; or `content`, the pixels of the image as bytes.

    `size` is the width and height of an image that the accelerator resizes, otherwise None.
    """

    inputs: Inputs
    size: tuple[int, int] | None = None


class Decoder:
    """Decodes images by position, and does the part of the preprocessing that the accelerator does not do.

    Args:
        preprocess: preprocessing of the tower.
        images: paths, stored files, PIL images or arrays.
        as_pixels: return pixels instead of the tower's inputs.
        resizes: the accelerator also resizes the images whose size it supports.
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

        The accelerator resizes the image if its pixels need at most `room` bytes; a larger image is resized here.
        """
        try:
            return self._prepared(open_image(self.images[position]), room)
        except DataError as error:
            return error

    def batch(self, positions: Sequence[int], decoded: Iterable[Decoded | DataError]) -> DecodedBatch:
        """Return a batch of decoded images; an unreadable image is replaced, and its error recorded."""
        errors: dict[int, DataError] = {}
        images: list[Decoded] = []
        for position, image in zip(positions, decoded, strict=True):
            if isinstance(image, DataError):
                errors[position] = image
                image = self.blank()
            images.append(image)
        return DecodedBatch(self.joined(images), [image.size for image in images], errors)

    def blank(self) -> Decoded:
        """Return the replacement for an unreadable image, in its final size."""
        return self._prepared(Image.new("RGB", (224, 224)), 0)

    def joined(self, images: Sequence[Decoded]) -> dict[str, Tensor]:
        """Combine the inputs of several images to the inputs of a batch."""
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
    """Return the positions of the images of each batch."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
