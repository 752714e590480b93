"""Comparison of pixels, to confirm that two similar images are copies of the same image."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.errors import DataError
from clipkit.images import Stored, open_image

# Measured on 100 photos of Flickr8k. Confirmed: all copies saved as JPEG with quality 50 or 20, as WebP, or at a half
# or a quarter of the size, and 95 % of the copies at half the size and JPEG quality 75. Not confirmed: all brighter
# copies, all copies cropped by 2 %, and all 117 pairs of different emoji that look alike (flags, one figure with two
# skin tones).
_COARSE, _FINE = 16, 64
_LARGEST_DIFFERENCE = 8.0
"""Largest allowed difference (out of 255) between copies at any of 16 × 16 points; smaller if the contrast is low."""
_LARGEST_DETAIL = 48.0
"""Largest allowed difference (out of 255) between copies at any of 64 × 64 points."""
_SHARE = 0.25
"""Largest allowed root mean square difference between copies at 64 × 64 points, relative to the standard deviation."""
_DRAFT = 2 * _FINE


def confirmed_copies(images: Sequence[Path | Stored], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Select the pairs of images that are copies, i.e. that differ only in size and encoding.

    A pair is dropped if one of its images cannot be opened.

    Args:
        images: N images.
        pairs: (P, 2) positions of images that may be copies.

    Returns:
        (K, 2) the confirmed rows of `pairs`.
    """

    @lru_cache(maxsize=4096)
    def small(position: int) -> Image.Image | None:
        try:
            opened = open_image(images[position], draft=_DRAFT)
        except (DataError, OSError):
            return None
        side = min(_DRAFT, *opened.size)
        return opened.resize((side, side), Image.Resampling.BILINEAR)

    kept = [_are_equal(small(one), small(other)) for one, other in pairs.tolist()]
    return pairs[np.array(kept, bool)]


def _are_equal(one: Image.Image | None, other: Image.Image | None) -> bool:
    if one is None or other is None:
        return False
    a, b = _values(one, _COARSE), _values(other, _COARSE)
    contrast = min(np.ptp(a), np.ptp(b))
    if np.abs(a - b).max() > min(_LARGEST_DIFFERENCE, contrast / 8):
        return False
    side = min(_FINE, one.width, other.width)
    a, b = _values(one, side), _values(other, side)
    if np.abs(a - b).max() > _LARGEST_DETAIL:
        return False
    return bool(np.sqrt(np.square(a - b).mean()) <= _SHARE * min(a.std(), b.std()))


def _values(image: Image.Image, side: int) -> NDArray[np.float32]:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).astype(np.float32)
