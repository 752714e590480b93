"""From an RGB picture to the inputs of an image tower."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# A picture -> its inputs by name, without a batch dimension: most towers take one, pixel_values (3, H, W).
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Preprocess:
    """A tower's own evaluation preprocessing, and what training needs to put another crop in its place.

    The library that the tower comes from does the work (`evaluate`), so that pixels equal its own.
    """

    evaluate: Callable[[Image.Image], Inputs]
    image_size: int | None
    """Side of the square input in pixels; None where a tower takes pictures in their own shape."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of channels in [0, 1]."""
    finish: Callable[[Image.Image], Inputs] | None = None
    """From a crop that already has the input's size to inputs, where that is more than scaling and normalising."""

    def __call__(self, picture: Image.Image) -> Inputs:
        """Resize, crop, scale to [0, 1] and normalise."""
        return self.evaluate(picture)

    def of_crop(self, picture: Image.Image) -> Inputs:
        """Inputs of a picture that is a crop of the input's size already: bytes, which `normalised` makes the rest of.

        A quarter of the memory, and of what goes from a loader worker to the device.
        """
        return self.finish(picture) if self.finish is not None else {"pixel_values": F.pil_to_tensor(picture)}

    def normalised(self, inputs: Inputs) -> Inputs:
        """Inputs of one picture or of several, with pixels that are bytes scaled to [0, 1] and normalised."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        scaled = F.normalize(F.to_dtype(pixels, scale=True), list(self.mean), list(self.std), inplace=True)
        return {**inputs, "pixel_values": scaled}


@dataclass(frozen=True)
class TransformCall:
    """A torchvision or timm transform, which gives the pixels alone; picklable where the transform is."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, picture: Image.Image) -> Inputs:
        return {"pixel_values": self.transform(picture)}
