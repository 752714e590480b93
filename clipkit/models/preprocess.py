"""Image preprocessing: from an RGB image to the inputs of an image tower."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

# An image -> its inputs by name, without a batch dimension: most towers take one, pixel_values (3, H, W).
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Resize:
    """Resizing before a square crop from the middle."""

    mode: Literal["shortest", "squash"]
    """shortest: the shorter side gets `size` pixels; squash: both sides do."""
    size: int
    interpolation: str
    """Name of a Pillow filter: bicubic, bilinear."""
    crop_offset: Literal["floor", "round"]
    """Rounding of the crop's position if an odd number of pixels is left over."""


@dataclass(frozen=True)
class PatchGrid:
    """Cutting an image of any shape into at most `patches` squares of `patch` pixels."""

    patch: int
    patches: int
    interpolation: str


@dataclass(frozen=True)
class Preprocess:
    """A tower's evaluation preprocessing, and what training needs to use another crop.

    The tower's own library does the work (`evaluate`), so that pixels equal that library's.
    """

    evaluate: Callable[[Image.Image], Inputs]
    image_size: int | None
    """Side of the square input in pixels; None if the tower keeps the shape of images."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Mean and standard deviation of channels in [0, 1]."""
    finish: Callable[[Image.Image], Inputs] | None = None
    """Function from a crop of the input's size to inputs, if that takes more than scaling and normalization."""
    steps: Resize | PatchGrid | None = None
    """`evaluate` as plain values, for exports; None if these values cannot describe it."""

    def __call__(self, image: Image.Image) -> Inputs:
        """Resize, crop, scale to [0, 1] and normalize."""
        return self.evaluate(image)

    def of_crop(self, crop: Image.Image | UInt8[Tensor, "3 H W"]) -> Inputs:
        """Inputs of a crop that already has the input's size, as bytes that `normalized` completes.

        Bytes take a quarter of the memory and of the transfer from a loader worker to the device.
        """
        from torchvision.transforms.v2 import functional as F  # not at the top: it takes seconds to import

        if self.finish is not None:
            return self.finish(F.to_pil_image(crop) if isinstance(crop, Tensor) else crop)
        return {"pixel_values": crop if isinstance(crop, Tensor) else F.pil_to_tensor(crop)}

    def normalized(self, inputs: Inputs) -> Inputs:
        """Inputs of one image or a batch, with pixels in bytes scaled to [0, 1] and normalized."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        scaled = torch.empty_like(pixels, dtype=torch.float32)
        # On a CPU image by image, so that the data stays in its cache.
        for bytes_, floats in (
            zip(pixels, scaled, strict=True) if pixels.is_cpu and pixels.ndim == 4 else [(pixels, scaled)]
        ):
            floats.copy_(bytes_).mul_(1 / 255).sub_(mean).div_(std)
        return {**inputs, "pixel_values": scaled}


@dataclass(frozen=True)
class TransformCall:
    """A torchvision or timm transform that returns pixels; can be pickled if the transform can."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Inputs:
        return {"pixel_values": self.transform(image)}
