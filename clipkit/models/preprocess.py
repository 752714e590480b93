"""Image preprocessing, which converts an RGB image to the inputs of an image tower."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

# Function (image) -> inputs by name, without a batch dimension. Most towers have one input, pixel_values (3, H, W).
Inputs = dict[str, Tensor]

Pixels = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Resize:
    """Settings of the resizing before a center crop."""

    mode: Literal["shortest", "squash"]
    """Resize mode. shortest: the shorter side is resized to `size` pixels; squash: both sides."""
    size: int
    interpolation: str
    """Name of a Pillow filter: bicubic, bilinear."""
    crop_offset: Literal["floor", "round"]
    """Rounding of the crop's position if an odd number of pixels is left over."""


@dataclass(frozen=True)
class PatchGrid:
    """Settings for splitting an image of any shape into at most `patches` squares of `patch` pixels."""

    patch: int
    patches: int
    interpolation: str


@dataclass(frozen=True)
class Preprocess:
    """Image preprocessing of a tower, for evaluation and for random crops in training.

    `evaluate` runs the code of the model's library, and therefore returns exactly the same inputs as the library.
    """

    evaluate: Callable[[Image.Image], Inputs]
    image_size: int | None
    """Side of the square input in pixels; None if the tower keeps the aspect ratio of images."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Mean and standard deviation of channels in [0, 1]."""
    finish: Callable[[Image.Image], Inputs] | None = None
    """Function from a crop of the input size to inputs, if this needs more than scaling and normalization."""
    steps: Resize | PatchGrid | None = None
    """Settings of `evaluate` as plain values, for exports; None if plain values cannot describe it."""
    pixels: Callable[[Image.Image], Pixels] | None = None
    """Function (image) -> uint8 pixels before scaling and normalization; None if the results depend on more than the
    pixel's value.
    """

    def __call__(self, image: Image.Image) -> Inputs:
        """Return the inputs for an image, which is resized, cropped, scaled to [0, 1] and normalized."""
        return self.evaluate(image)

    def of_crop(self, crop: Image.Image | UInt8[Tensor, "3 H W"]) -> Inputs:
        """Return the inputs for a training crop that already has the input size.

        If `finish` is None, pixels stay uint8, which needs a quarter of the memory of float32. `normalized` converts
        them later.
        """
        from torchvision.transforms.v2 import functional as F  # imported here because it takes seconds

        if self.finish is not None:
            return self.finish(F.to_pil_image(crop) if isinstance(crop, Tensor) else crop)
        return {"pixel_values": crop if isinstance(crop, Tensor) else F.pil_to_tensor(crop)}

    def normalized(self, inputs: Inputs) -> Inputs:
        """Scale uint8 pixels to [0, 1] and normalize them, for one image or a batch. Other inputs stay unchanged."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        mean, std = (_per_channel(tuple(values), pixels.device) for values in (self.mean, self.std))
        if not pixels.is_cpu:  # in one kernel
            return {**inputs, "pixel_values": torch.addcmul(-mean / std, pixels, 1 / (255 * std))}
        scaled = torch.empty_like(pixels, dtype=torch.float32)
        # One image at a time, so that the data stays in the cache.
        for bytes_, floats in zip(pixels, scaled, strict=True) if pixels.ndim == 4 else [(pixels, scaled)]:
            rows, values, center, scale = bytes_, floats, mean, std
            if (
                not floats.is_contiguous() and floats.permute(1, 2, 0).is_contiguous()
            ):  # channels last: normalizes whole rows at once, in a quarter of the time
                rows, values = (image.permute(1, 2, 0).flatten(1) for image in (bytes_, floats))
                center, scale = (one.flatten().repeat(bytes_.shape[2]) for one in (mean, std))
            values.copy_(rows).mul_(1 / 255).sub_(center).div_(scale)
        return {**inputs, "pixel_values": scaled}


def channels_last(inputs: Inputs) -> Inputs:
    """Store pixels with channels last in memory, which makes convolutions up to twice as fast."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in inputs.items()
    }


def stack_inputs(images: Sequence[Inputs]) -> Inputs:
    """Stack the inputs of several images into a batch."""
    return channels_last({name: torch.stack([inputs[name] for inputs in images]) for name in images[0]})


@cache  # creating the tensor each time would wait for the GPU
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a tensor (3, 1, 1) with one value per channel."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


@dataclass(frozen=True)
class TransformCall:
    """Wrapper of a torchvision or timm transform that returns the pixels as a dict of inputs.

    It can be pickled if the transform can be pickled.
    """

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Inputs:
        return {"pixel_values": self.transform(image)}

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the uint8 pixels before the last two steps, division by 255 and normalization."""
        for step in self._steps[:-2]:
            image = step(image)
        return np.array(image)

    @property
    def scales_last(self) -> bool:
        """Return whether the transform ends with scaling and normalization."""
        return [type(step).__name__.removeprefix("Maybe") for step in self._steps[-2:]] == ["ToTensor", "Normalize"]

    @property
    def normalization(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of the normalization, which is the last step."""
        last = self._steps[-1]
        mean, std = (np.asarray(of, dtype=np.float64).ravel().tolist() for of in (last.mean, last.std))
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    @property
    def _steps(self) -> list[Any]:
        return getattr(self.transform, "transforms", [])
