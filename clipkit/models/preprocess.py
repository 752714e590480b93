"""From an RGB image to the inputs of an image tower."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# An image -> its inputs by name, without a batch dimension: most towers take one, pixel_values (3, H, W).
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Preprocess:
    """A tower's own evaluation preprocessing, and what training needs to put another crop in its place.

    The library that the tower comes from does the work (`evaluate`), so that pixels equal its own.
    """

    evaluate: Callable[[Image.Image], Inputs]
    image_size: int | None
    """Side of the square input in pixels; None where a tower takes images in their own shape."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of channels in [0, 1]."""
    finish: Callable[[Image.Image], Inputs] | None = None
    """From a crop that already has the input's size to inputs, where that is more than scaling and normalising."""

    def __call__(self, image: Image.Image) -> Inputs:
        """Resize, crop, scale to [0, 1] and normalise."""
        return self.evaluate(image)

    def of_crop(self, crop: Image.Image | UInt8[Tensor, "3 H W"]) -> Inputs:
        """Inputs of a crop that already has the input's size: bytes, which `normalised` makes the rest of.

        A quarter of the memory, and of what goes from a loader worker to the device.
        """
        if self.finish is not None:
            return self.finish(F.to_pil_image(crop) if isinstance(crop, Tensor) else crop)
        return {"pixel_values": crop if isinstance(crop, Tensor) else F.pil_to_tensor(crop)}

    def normalised(self, inputs: Inputs) -> Inputs:
        """Inputs of one image or of several, with pixels that are bytes scaled to [0, 1] and normalised."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        mean, std = (torch.tensor(own, device=pixels.device)[:, None, None] for own in (self.mean, self.std))
        scaled = torch.empty_like(pixels, dtype=torch.float32)
        # On a processor one by one: what is worked on stays in its cache.
        for bytes_, own in (
            zip(pixels, scaled, strict=True) if pixels.is_cpu and pixels.ndim == 4 else [(pixels, scaled)]
        ):
            own.copy_(bytes_).mul_(1 / 255).sub_(mean).div_(std)
        return {**inputs, "pixel_values": scaled}


@dataclass(frozen=True)
class TransformCall:
    """A torchvision or timm transform, which gives the pixels alone; picklable where the transform is."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Inputs:
        return {"pixel_values": self.transform(image)}
