"""Deterministic corruptions of images, e.g. blur, applied each time an image is read.

The four kinds are from Hendrycks and Dietterich 2019 ("Benchmarking neural network robustness to common corruptions and
perturbations"). The levels are relative to the image size and differ from ImageNet-C. So metrics cannot be compared
with published metrics on ImageNet-C.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from clipkit.evaluation.suites.entries import Corruption
from clipkit.image_formats import open_content
from clipkit.images import Changed, Stored

# Strengths of the levels 1 to 5.
BLUR = (0.004, 0.008, 0.013, 0.02, 0.03)
"""Radius of a Gaussian blur, as a share of the shorter side."""
NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
"""Standard deviation of Gaussian noise, for pixels in [0, 1]."""
JPEG = (25, 18, 12, 8, 5)
"""JPEG quality."""
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Value that is added to each pixel, for pixels in [0, 1]."""


class Corrupted(Changed):
    """An image that is corrupted each time it is read."""

    __slots__ = ("corruption",)

    def __init__(self, source: Path | Stored, corruption: Corruption) -> None:
        super().__init__(source, f"{corruption.name}-{corruption.level}")
        self.corruption = corruption

    def changed(self, image: Image.Image) -> Image.Image:
        return corrupted(image, self.corruption, self.source.name)


def corrupted(image: Image.Image, corruption: Corruption, seed: str) -> Image.Image:
    """Return a corrupted copy of an image.

    Args:
        image: an RGB image.
        corruption: kind and level of the corruption.
        seed: text that determines the random noise, e.g. the name of the image.

    Example:
        >>> gray = Image.new("RGB", (8, 8), (100, 100, 100))
        >>> corrupted(gray, Corruption(name="brightness", level=2), "a").getpixel((0, 0))
        (151, 151, 151)
    """
    level = corruption.level - 1
    match corruption.name:
        case "blur":
            return image.filter(ImageFilter.GaussianBlur(BLUR[level] * min(image.size)))
        case "jpeg":
            content = io.BytesIO()
            image.save(content, "JPEG", quality=JPEG[level])
            with open_content(content.getvalue()) as opened:
                return opened.convert("RGB")
        case "brightness":
            return Image.fromarray(_clipped(np.asarray(image, dtype=np.float32) + 255 * BRIGHTNESS[level]))
        case "noise":
            digest = hashlib.sha256(f"{seed}\0{corruption.level}".encode()).digest()
            noise = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            pixels = np.asarray(image, dtype=np.float32)
            return Image.fromarray(_clipped(pixels + noise.normal(0, 255 * NOISE[level], pixels.shape)))


def _clipped(pixels: Any) -> Any:
    return pixels.round().clip(0, 255).astype(np.uint8)
