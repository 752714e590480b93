"""Random augmentation of images that depends only on the seed, the image and the epoch."""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
# An image, or its pixels as a uint8 tensor (3, H, W).
Drawn = Image.Image | Tensor
Finish = Callable[[Image.Image], Inputs]
FinishCrop = Callable[[Drawn], Inputs]

_AUGMENT = 2  # number of this module's random stream; each module has a different number
_GRAY = 128
_ATTEMPTS = 10  # number of attempts to draw a crop within the image, as in torchvision

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_COLORS = re.compile(
    r"\b(black|white|gr[ae]y|red(dish)?|green(ish)?|blue|bluish|yellow|orange|purple|violet|pink|brown|gold(en)?|silver"
    r"|beige|tan|cream|turquoise|teal|maroon|navy|crimson|scarlet|magenta|cyan|lavender|blond|blonde|brunette"
    r"|(\w*-)?colou?r(s|ed|ful)?|multicolou?red|dark|light|bright)\b",
    re.IGNORECASE,
)


@dataclass(eq=False)
class Policy:
    """Augmentation policy: converts an image to the inputs of the image tower.

    A call takes (image, epoch, position of the image in the data). Random choices depend only on the seed, the view,
    the epoch and this position, so they are the same in all processes. Torch's global random state does not change.

    Args:
        policy: augmentation steps in order; empty: no augmentation, only the preprocessing for evaluation.
        image_size: side of the tower's input in pixels; None: crops are not resized.
        of_crop: function from a square crop of side `image_size` to the tower's inputs by name, e.g. pixel_values. The
            crop is a PIL image or a uint8 tensor (3, H, W).
        evaluate: function from an image of any size to the tower's inputs; used if the policy has no crop.
        seed: seed of the run.
        view: number of the augmented view: 0 for the view that is compared with captions; 1, 2, … for further views.
        safe: images that must not be flipped or recolored; None: all images may be flipped and recolored.

    Example:
        >>> from clipkit.recipe import steps_of
        >>> pixels = lambda image: {"pixel_values": T.functional.pil_to_tensor(image)}
        >>> policy = Policy(steps_of("simclr"), 32, pixels, pixels, seed=0, view=1)
        >>> policy(Image.new("RGB", (64, 48)), 0, 7)["pixel_values"].shape
        torch.Size([3, 32, 32])
    """

    policy: Sequence[Step]
    image_size: int | None
    of_crop: FinishCrop
    evaluate: Finish
    seed: int
    view: int = 0
    safe: "TextSafe | None" = None

    def __post_init__(self) -> None:
        self._scales = [step.scale[0] for step in self.policy if isinstance(step, steps.Crop)]
        self._applied = {
            (may_flip, may_recolor): self._transforms(may_flip, may_recolor)
            for may_flip in (False, True)
            for may_recolor in (False, True)
        }

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Inputs:
        """Augment an image for an epoch, and return the inputs of the image tower.

        `index` is the position of the image in the data.
        """
        drawn = self._drawn(image, epoch, index)
        return self.of_crop(drawn) if self._scales or isinstance(drawn, Tensor) else self.evaluate(drawn)

    @property
    def draft(self) -> int | None:
        """Smallest short side in pixels at which images may be decoded for this policy; None: full size.

        At this size, even the smallest crop does not have to be enlarged to `image_size`.
        """
        if self.image_size is None or not self._scales:
            return None
        return math.ceil(self.image_size / math.sqrt(min(self._scales)))

    def augmented(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        """Return the augmented image for an epoch. `index` is the position of the image in the data."""
        drawn = self._drawn(image, epoch, index)
        return T.functional.to_pil_image(drawn) if isinstance(drawn, Tensor) else drawn

    def _drawn(self, image: Image.Image, epoch: int, index: int) -> Drawn:
        may = (True, True) if self.safe is None else self.safe.of(index)
        state = torch.get_rng_state()
        try:
            # Not torch.manual_seed, which would also seed the generators of accelerators.
            view = (self.view,) if self.view else ()
            torch.default_generator.manual_seed(mix(self.seed, _AUGMENT, epoch, index, *view))
            *before, last = self._applied[may] or [_same]
            for transform in before:
                image = transform(image)
            # If the last step is a crop, its result stays a tensor.
            return last.bytes(image) if isinstance(last, _Crop) and last.size is not None else last(image)
        finally:
            torch.set_rng_state(state)

    def _transforms(self, may_flip: bool, may_recolor: bool) -> list[Change]:
        changes: list[Change] = []
        for step in self.policy:
            match step:
                case steps.Crop():
                    changes.append(_Crop(step, self.image_size))
                case steps.Flip() if may_flip and step.direction == "horizontal":
                    changes.append(T.RandomHorizontalFlip(step.p))
                case steps.Flip() if may_flip:
                    changes.append(T.RandomVerticalFlip(step.p))
                case steps.Rotate():
                    # A rotation by more than 45 degrees could swap left and right.
                    degrees = step.degrees if may_flip else min(step.degrees, 45.0)
                    rotate = T.RandomRotation(degrees, InterpolationMode.BILINEAR, fill=_GRAY)
                    changes.append(_sometimes(rotate, step.p))
                case steps.Jitter() if may_recolor:  # includes brightness and contrast, which may turn a white dog gray
                    jitter = T.ColorJitter(step.brightness, step.contrast, step.saturation, step.hue)
                    changes.append(_sometimes(jitter, step.p))
                case steps.Grayscale() if may_recolor:
                    changes.append(T.RandomGrayscale(step.p))
                case steps.Blur():
                    changes.append(_sometimes(_Blur(step), step.p))
                case steps.Solarize() if may_recolor:
                    changes.append(T.RandomSolarize(step.threshold, step.p))
                case steps.Cutout():
                    changes.append(_Cutout(step))
                case steps.RandAugment() if may_recolor:
                    changes.append(T.RandAugment(step.count, step.magnitude, interpolation=InterpolationMode.BILINEAR))
        return changes


def _same(image: Image.Image) -> Image.Image:
    return image


def shared_draft(augments: Iterable[object]) -> int | None:
    """Return the smallest short side in pixels at which images may be decoded for all given policies.

    This is the largest `draft` of the policies, or None if any policy needs images at full size.
    """
    sides = [augment.draft if isinstance(augment, Policy) else None for augment in augments]
    known = [side for side in sides if side is not None]
    return max(known) if known and len(known) == len(sides) else None


class TextSafe:
    """Finds images that must not be flipped or recolored, because a caption would become wrong.

    Images whose captions mention left or right must not be flipped. Images whose captions mention a color must not be
    recolored.

    Args:
        pairs: images with captions.

    Example:
        >>> from pathlib import Path
        >>> pairs = Pairs("made", [Path("a"), Path("b")], ["a red car", "a man turns left"], np.array([0, 1]))
        >>> TextSafe(pairs).of(0), TextSafe(pairs).of(1)
        ((True, False), (False, True))
    """

    def __init__(self, pairs: Pairs) -> None:
        self._may_flip = self._without(pairs, _SIDES)
        self._may_recolor = self._without(pairs, _COLORS)

    def of(self, index: int) -> tuple[bool, bool]:
        """Return (may be flipped, may be recolored) for the image at the position `index`."""
        return bool(self._may_flip[index]), bool(self._may_recolor[index])

    @staticmethod
    def _without(pairs: Pairs, words: re.Pattern[str]) -> NDArray[np.bool_]:
        has_word = np.array([words.search(caption) is not None for caption in pairs.captions])
        allowed = np.ones(len(pairs.images), dtype=bool)
        allowed[pairs.image_of_caption[has_word]] = False
        return allowed


def _sometimes(transform: Change, p: float) -> Change:
    return transform if p == 1 else T.RandomApply([transform], p)


class _Crop:
    """Random resized crop. If `size` is None, the crop is not resized.

    Torch resizes four times as fast as Pillow, and the pixel values differ by at most 1 of 255.
    """

    def __init__(self, step: steps.Crop, size: int | None) -> None:
        self.size = size
        self.scale = step.scale
        self.ratio = step.ratio
        self._log_ratio = torch.tensor(step.ratio).log().tolist()
        self._number = torch.empty(1)

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image.crop(self._box(image))
        return T.functional.to_pil_image(self.bytes(image))

    def bytes(self, image: Image.Image) -> UInt8[Tensor, "3 H W"]:
        """Return the resized crop as a uint8 tensor."""
        assert self.size is not None
        left, top, right, bottom = self._box(image)
        # An input with channels last gives a result with channels last, in a quarter less time.
        pixels = _view(image)[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
        return interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True)[0]

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Return the left, top, right and bottom edges of a random crop, in pixels.

        For the same random state, torchvision's RandomResizedCrop has the same edges.
        """
        width, height = image.size
        for _ in range(_ATTEMPTS):
            area = width * height * self._number.uniform_(*self.scale).item()
            aspect = self._number.uniform_(*self._log_ratio).exp_().item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = (int(torch.randint(0, free + 1, (1,))) for free in (height - h, width - w))
                return left, top, left + w, top + h
        # If no attempt succeeds, use the largest center crop with a permitted aspect ratio.
        low, high = self.ratio
        w = round(height * high) if width / height > high else width
        h = round(width / low) if width / height < low else height
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def _view(image: Image.Image) -> UInt8[Tensor, "1 3 H W"]:
    """Return a read-only tensor view of the bytes of an RGB image."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None]


class _Blur:
    """Gaussian blur with a kernel radius of three times the largest sigma, limited to the size of the image."""

    def __init__(self, step: steps.Blur) -> None:
        self.sigma = step.sigma
        self.reach = int(np.ceil(3 * step.sigma[1]))

    def __call__(self, image: Image.Image) -> Image.Image:
        return T.GaussianBlur(2 * min(self.reach, min(image.size) - 1) + 1, self.sigma)(image)


class _Cutout:
    """Erases a random rectangle of a PIL image; torchvision's RandomErasing accepts only tensors."""

    def __init__(self, step: steps.Cutout) -> None:
        self.erase = T.RandomErasing(step.p, step.scale, value=_GRAY)

    def __call__(self, image: Image.Image) -> Image.Image:
        return T.functional.to_pil_image(self.erase(T.functional.pil_to_tensor(image)))
