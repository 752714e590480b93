"""Augmentation, seeded by what is augmented."""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T

from clipkit.data.pairs import Pairs
from clipkit.recipe import Step
from clipkit.recipe import policies as steps
from clipkit.seeds import mix

Inputs = dict[str, Tensor]
Change = Callable[[Image.Image], Image.Image]
# An image, or the bytes (3, H, W) of one.
Drawn = Image.Image | Tensor
Finish = Callable[[Image.Image], Inputs]
FinishCrop = Callable[[Drawn], Inputs]

_AUGMENT = 2  # beside the sampler's streams of the same seed
_GREY = 128

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_COLOURS = re.compile(
    r"\b(black|white|gr[ae]y|red(dish)?|green(ish)?|blue|bluish|yellow|orange|purple|violet|pink|brown|gold(en)?|silver"
    r"|beige|tan|cream|turquoise|teal|maroon|navy|crimson|scarlet|magenta|cyan|lavender|blond|blonde|brunette"
    r"|(\w*-)?colou?r(s|ed|ful)?|multicolou?red|dark|light|bright)\b",
    re.IGNORECASE,
)


class Policy:
    """An augmentation policy as a function of the image and of who it is.

    What it draws depends on (seed, epoch, image, view) alone, never on the process or worker, and torch's global
    generator is left as it was.

    Args:
        policy: its steps, in order; none: the evaluation preprocessing.
        image_size: side of the tower's input in pixels; None: crops keep their own size.
        of_crop: an image of the input's size, or its bytes (3, H, W) -> inputs by name, as pixel_values (3, H, W).
        evaluate: any image -> inputs; for policies without a crop, which come before it.
        seed: the run's.
        view: which of an image's views this is; 0 for the image beside a caption.
        safe: which of the images may not be flipped, and whose colours may not change; None: all may.

    Example:
        >>> from clipkit.recipe import steps_of
        >>> pixels = lambda image: {"pixel_values": T.functional.pil_to_tensor(image)}
        >>> policy = Policy(steps_of("simclr"), 32, pixels, pixels, seed=0, view=1)
        >>> policy(Image.new("RGB", (64, 48)), 0, 7)["pixel_values"].shape
        torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        policy: Sequence[Step],
        image_size: int | None,
        of_crop: FinishCrop,
        evaluate: Finish,
        seed: int,
        view: int = 0,
        safe: "TextSafe | None" = None,
    ) -> None:
        self.image_size = image_size
        self.of_crop = of_crop
        self.evaluate = evaluate
        self._crops = any(isinstance(step, steps.Crop) for step in policy)
        self.seed = seed
        self.view = view
        self.safe = safe
        self._scales = [step.scale[0] for step in policy if isinstance(step, steps.Crop)]
        self._applied = {
            (may_flip, may_colour): self._transforms(policy, may_flip, may_colour)
            for may_flip in (False, True)
            for may_colour in (False, True)
        }

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Inputs:
        """The inputs of this view of this image in this epoch."""
        drawn = self._drawn(image, epoch, index)
        return self.of_crop(drawn) if self._crops or isinstance(drawn, Tensor) else self.evaluate(drawn)

    @property
    def draft(self) -> int | None:
        """Short side in pixels that an image has to keep for the smallest crop to have the input's size; None: all."""
        if self.image_size is None or not self._scales:
            return None
        return math.ceil(self.image_size / math.sqrt(min(self._scales)))

    def augmented(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        """The image before it becomes an input."""
        drawn = self._drawn(image, epoch, index)
        return T.functional.to_pil_image(drawn) if isinstance(drawn, Tensor) else drawn

    def _drawn(self, image: Image.Image, epoch: int, index: int) -> Drawn:
        may = (True, True) if self.safe is None else self.safe.of(index)
        state = torch.get_rng_state()
        try:
            # Not torch.manual_seed, which would reseed the accelerators' generators too.
            own = (self.view,) if self.view else ()
            torch.default_generator.manual_seed(mix(self.seed, _AUGMENT, epoch, index, *own))
            *before, last = self._applied[may] or [_same]
            for transform in before:
                image = transform(image)
            # A crop at the end need not become an image again.
            return last.bytes(image) if isinstance(last, _Crop) and last.size is not None else last(image)
        finally:
            torch.set_rng_state(state)

    def _transforms(self, policy: Sequence[Step], may_flip: bool, may_colour: bool) -> list[Change]:
        found: list[Change] = []
        for step in policy:
            match step:
                case steps.Crop():
                    found.append(_Crop(step, self.image_size))
                case steps.Flip() if may_flip and step.direction == "horizontal":
                    found.append(T.RandomHorizontalFlip(step.p))
                case steps.Flip() if may_flip:
                    found.append(T.RandomVerticalFlip(step.p))
                case steps.Rotate():
                    # By more than half a right angle left and right would begin to change places.
                    degrees = step.degrees if may_flip else min(step.degrees, 45.0)
                    rotate = T.RandomRotation(degrees, InterpolationMode.BILINEAR, fill=_GREY)
                    found.append(_sometimes(rotate, step.p))
                case steps.Jitter() if may_colour:  # brightness and contrast too: a white dog soon is a grey one
                    jitter = T.ColorJitter(step.brightness, step.contrast, step.saturation, step.hue)
                    found.append(_sometimes(jitter, step.p))
                case steps.Grey() if may_colour:
                    found.append(T.RandomGrayscale(step.p))
                case steps.Blur():
                    found.append(_sometimes(_Blur(step), step.p))
                case steps.Solarise() if may_colour:
                    found.append(T.RandomSolarize(step.threshold, step.p))
                case steps.Cutout():
                    found.append(_Cutout(step))
                case steps.RandAugment() if may_colour:
                    found.append(T.RandAugment(step.count, step.magnitude, interpolation=InterpolationMode.BILINEAR))
        return found


def _same(image: Image.Image) -> Image.Image:
    return image


def shared_draft(augments: Iterable[object]) -> int | None:
    """Return the short side in pixels that is enough for all policies; None if one needs the full size."""
    sides = [augment.draft if isinstance(augment, Policy) else None for augment in augments]
    known = [side for side in sides if side is not None]
    return max(known) if known and len(known) == len(sides) else None


class TextSafe:
    """What augmentation may do to each image without making its captions wrong.

    Args:
        pairs: the images; of each all captions count.

    Example:
        >>> from pathlib import Path
        >>> pairs = Pairs("made", [Path("a"), Path("b")], ["a red car", "a man turns left"], np.array([0, 1]))
        >>> TextSafe(pairs).of(0), TextSafe(pairs).of(1)
        ((True, False), (False, True))
    """

    def __init__(self, pairs: Pairs) -> None:
        self._may_flip = self._without(pairs, _SIDES)
        self._may_colour = self._without(pairs, _COLOURS)

    def of(self, index: int) -> tuple[bool, bool]:
        """Whether it may be flipped, and whether its colours may change."""
        return bool(self._may_flip[index]), bool(self._may_colour[index])

    @property
    def counts(self) -> tuple[int, int]:
        """How many images may not be flipped, and how many may not change their colours."""
        return int((~self._may_flip).sum()), int((~self._may_colour).sum())

    @staticmethod
    def _without(pairs: Pairs, words: re.Pattern[str]) -> NDArray[np.bool_]:
        said = np.array([words.search(caption) is not None for caption in pairs.captions])
        allowed = np.ones(len(pairs.images), dtype=bool)
        allowed[pairs.image_of_caption[said]] = False
        return allowed


def _sometimes(transform: Change, p: float) -> Change:
    return transform if p == 1 else T.RandomApply([transform], p)


class _Crop:
    """RandomResizedCrop, the part resized by torch on bytes: a quarter of Pillow's time, at most one level apart.

    Without a size the part is not resized.
    """

    def __init__(self, step: steps.Crop, size: int | None) -> None:
        self.size = size
        self.crop = T.RandomResizedCrop(size or 1, step.scale, step.ratio)

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image.crop(self._box(image))
        return T.functional.to_pil_image(self.bytes(image))

    def bytes(self, image: Image.Image) -> UInt8[Tensor, "3 H W"]:
        """The resized part."""
        assert self.size is not None
        left, top, right, bottom = self._box(image)
        pixels = _view(image)[:, :, top:bottom, left:right]
        return interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True)[0]

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        box = self.crop.make_params([image])
        return box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"]


def _view(image: Image.Image) -> UInt8[Tensor, "1 3 H W"]:
    """An RGB image's bytes, which are only to be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None]


class _Blur:
    """GaussianBlur with a kernel of three deviations to each side, as far as the image has so many pixels."""

    def __init__(self, step: steps.Blur) -> None:
        self.sigma = step.sigma
        self.reach = int(np.ceil(3 * step.sigma[1]))

    def __call__(self, image: Image.Image) -> Image.Image:
        return T.GaussianBlur(2 * min(self.reach, min(image.size) - 1) + 1, self.sigma)(image)


class _Cutout:
    """RandomErasing, which takes no PIL images."""

    def __init__(self, step: steps.Cutout) -> None:
        self.erase = T.RandomErasing(step.p, step.scale, value=_GREY)

    def __call__(self, image: Image.Image) -> Image.Image:
        return T.functional.to_pil_image(self.erase(T.functional.pil_to_tensor(image)))
