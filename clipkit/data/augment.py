"""Augmentation, seeded by what is augmented."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop

from clipkit.seeds import mix

_AUGMENT = 2  # beside the sampler's streams of the same seed


class SeededCrop:
    """A random resized crop (Szegedy et al. 2015), the only augmentation that CLIP was trained with.

    What it draws depends on (seed, epoch, image) alone, never on the process or worker, and torch's global
    generator is left as it was.

    Args:
        image_size: side of the result in pixels; None: the crop keeps its own size.
        scale: share of the picture's area that is kept, lowest and highest.
        finish: a crop -> inputs by name, as pixel_values (3, H, W).
        seed: the run's.
    """

    def __init__(
        self,
        image_size: int | None,
        scale: tuple[float, float],
        finish: Callable[[Image.Image], dict[str, Tensor]],
        seed: int,
    ) -> None:
        # The size of a crop that keeps its own is not used.
        self.crop = RandomResizedCrop(image_size or 1, scale, interpolation=InterpolationMode.BICUBIC)
        self.resized = image_size is not None
        self.finish = finish
        self.seed = seed

    def __call__(self, picture: Image.Image, epoch: int, image: int) -> dict[str, Tensor]:
        """The crop that this image gets in this epoch."""
        state = torch.get_rng_state()
        try:
            # Not torch.manual_seed, which would reseed the accelerators' generators too.
            torch.default_generator.manual_seed(mix(self.seed, _AUGMENT, epoch, image))
            if self.resized:
                return self.finish(self.crop(picture))
            box = self.crop.make_params([picture])
            left, top = box["left"], box["top"]
            return self.finish(picture.crop((left, top, left + box["width"], top + box["height"])))
        finally:
            torch.set_rng_state(state)


class Unaugmented:
    """A model's own evaluation preprocessing, in the place of an augmentation."""

    def __init__(self, evaluate: Callable[[Image.Image], dict[str, Tensor]]) -> None:
        self.evaluate = evaluate

    def __call__(self, picture: Image.Image, epoch: int, image: int) -> dict[str, Tensor]:
        """The same pixels in every epoch."""
        return self.evaluate(picture)
