"""Image resizing on any device, with exactly the same bytes as Pillow.

Pillow (`Resample.c`) multiplies bytes by coefficients with 22 bits after the binary point. It adds the products as
integers, and rounds once per direction. This module computes the same sums with matrix products in float32. Each
coefficient is split into a high and a low part, so that all sums are integers below 2^24, which float32 represents
exactly.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from clipkit.models.preprocess import Resize

_BITS = 22
_LOW = 11
_MOST_WEIGHTS = 512  # largest number of matrices in the cache; each has at most a few hundred kilobytes
_MOST_TAPS = 32  # largest number of coefficients of a pixel, so that sums are exact: 32 · 255 · 2047 < 2^24


def _bicubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return np.where(x < 1.0, near, np.where(x < 2.0, (((x - 5) * x + 8) * x - 4) * a, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


# Name -> filter function, and the distance in pixels at which it becomes 0.
_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}


def can_resize(width: int, height: int, steps: Resize, side: int) -> bool:
    """Return whether `ExactResize` supports images of this size.

    For some images, e.g. very tall ones, newer versions of Pillow resize columns before rows (pull request 9549). These
    images are not supported, because `ExactResize` resizes rows first.
    """
    if steps.interpolation not in _FILTERS or steps.size < side:
        return False
    new_width, new_height = _target(width, height, steps)
    taps = 2 * _FILTERS[steps.interpolation][1] * max(width / new_width, height / new_height, 1.0) + 2
    rows_first = height <= new_height or height - new_height <= 1.9 * (width - new_width)
    return taps <= _MOST_TAPS and rows_first and height <= 8 * width


class ExactResize:
    """Resizes and center-crops images on a device, with the same results as Pillow.

    Args:
        steps: settings of the resizing.
        side: side of the square crop in pixels.
        device: device of the images.
    """

    def __init__(self, steps: Resize, side: int, device: torch.device) -> None:
        self.steps = steps
        self.side = side
        self.device = device
        self._weights: dict[tuple[int, int], Int[Tensor, "before 2*side"]] = {}

    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> UInt8[Tensor, "N S S 3"]:
        """Resize and crop images for which `can_resize` is true."""
        height, width = images.shape[1:3]
        new_width, new_height = _target(width, height, self.steps)
        pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        pixels = self._along(3, pixels, new_width)
        return self._along(2, pixels, new_height).to(torch.uint8).permute(0, 2, 3, 1)

    def _along(self, axis: int, pixels: Float[Tensor, "N 3 H W"], length: int) -> Tensor:
        """Resize an axis to `length` pixels, and return the central `self.side` pixels."""
        margin = length - self.side
        start = round(margin / 2) if self.steps.crop_offset == "round" else margin // 2
        before = pixels.shape[axis]
        if before == length:
            return pixels.narrow(axis, start, self.side)
        key = before, length
        if key not in self._weights:
            if len(self._weights) >= _MOST_WEIGHTS:
                self._weights.clear()
            self._weights[key] = self._parts(_coefficients(before, length, self.steps.interpolation), start)
        weights = self._weights[key].float()
        sums = pixels @ weights if axis == 3 else weights.T @ pixels
        high, low = sums.int().split(self.side, dim=axis)
        return (((high << _LOW) + low + (1 << (_BITS - 1))) >> _BITS).clamp(0, 255).float()

    def _parts(self, table: Int[np.ndarray, "after before"], start: int) -> Int[Tensor, "before 2*side"]:
        """Return the high parts and then the low parts of the coefficients of the crop, on the device.

        The table is a result of `_coefficients`. The crop starts at pixel `start`.
        """
        rows = table[start : start + self.side]
        parts = np.concatenate([rows >> _LOW, rows & ((1 << _LOW) - 1)]).T.astype(np.int16)
        copy = torch.from_numpy(np.ascontiguousarray(parts))
        if self.device.type == "cuda":  # without pinned memory, the copy would wait for the GPU
            return copy.pin_memory().to(self.device, non_blocking=True)
        return copy.to(self.device)


def _target(width: int, height: int, steps: Resize) -> tuple[int, int]:
    if steps.mode == "squash":
        return steps.size, steps.size
    short, long = sorted((width, height))
    longer = int(steps.size * long / short)
    return (steps.size, longer) if width <= height else (longer, steps.size)


def _coefficients(before: int, after: int, name: str) -> Int[np.ndarray, "after before"]:
    """Return Pillow's resizing coefficients: the weight of each old pixel in each new pixel.

    Args:
        before: number of old pixels.
        after: number of new pixels.
        name: name of the filter, e.g. bicubic.
    """
    function, reach = _FILTERS[name]
    scale = before / after
    stretch = max(scale, 1.0)
    reach *= stretch
    centers = (np.arange(after) + 0.5) * scale
    first = np.maximum(0, (centers - reach + 0.5).astype(np.int64))
    last = np.minimum(before, (centers + reach + 0.5).astype(np.int64))
    taps = int((last - first).max())
    positions = first[:, None] + np.arange(taps)
    values = function((positions - centers[:, None] + 0.5) * (1.0 / stretch)) * (positions < last[:, None])
    values /= values.cumsum(axis=1)[:, -1:]  # added in the order of Pillow's loop
    rounded = np.trunc(values * (1 << _BITS) + np.where(values < 0, -0.5, 0.5)).astype(np.int64)
    table = np.zeros((after, before + taps), dtype=np.int64)
    np.put_along_axis(table, positions, rounded, axis=1)
    return table[:, :before]
