"""From an RGB picture to the pixels a tower takes."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class Preprocess:
    """A tower's own evaluation preprocessing, and what training needs to put another crop in its place.

    The library that the tower comes from does the work (`evaluate`), so that pixels equal its own.
    """

    evaluate: Callable[[Image.Image], Float[Tensor, "3 H W"]]
    image_size: int
    """Side of the square input in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of channels in [0, 1]."""

    def __call__(self, picture: Image.Image) -> Float[Tensor, "3 H W"]:
        """Resize, crop, scale to [0, 1] and normalise."""
        return self.evaluate(picture)

    def normalize(self, picture: Image.Image) -> Float[Tensor, "3 H W"]:
        """Scale to [0, 1] and normalise a picture that already has the input's size."""
        pixels = F.to_dtype(F.pil_to_tensor(picture), scale=True)
        return F.normalize(pixels, list(self.mean), list(self.std))
