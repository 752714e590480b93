"""Image preprocessing on a device, with exactly the same values as the model's library on the CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from clipkit.models.exact_resize import ExactResize, can_resize
from clipkit.models.preprocess import Preprocess, Resize

# Largest number of bytes of images (of one size) that are resized at once.
_GROUP = 12 << 20


class ExactPixels:
    """Converts decoded images to the tower's input on the tower's device, by resizing, cropping and normalization.

    Args:
        preprocess: preprocessing of the tower.
        table: result of `pixel_table`.
        device: device of the tower.
        dtype: type of the tower's weights.
    """

    def __init__(
        self, preprocess: Preprocess, table: Float[Tensor, "3 256"], device: torch.device, dtype: torch.dtype
    ) -> None:
        assert preprocess.image_size is not None
        self.side = preprocess.image_size
        self.table = table.to(device, dtype)
        self.resize: ExactResize | None = None
        if isinstance(preprocess.steps, Resize):
            self.resize = ExactResize(preprocess.steps, self.side, device)
            if not self._equals_library(preprocess, preprocess.steps):
                self.resize = None

    def __call__(
        self, content: UInt8[Tensor, " bytes"], sizes: Sequence[tuple[int, int] | None]
    ) -> Float[Tensor, "B 3 S S"]:
        """Return the tower's input.

        Args:
            content: pixels of B images (H, W, 3), one image after another.
            sizes: width and height of each image; None for an image that is already resized and cropped.
        """
        with torch.autocast(content.device.type, enabled=False):
            return looked_up(self.table, self._pixels(content, sizes))

    def _pixels(self, content: Tensor, sizes: Sequence[tuple[int, int] | None]) -> UInt8[Tensor, "B S S 3"]:
        lengths = [3 * (self.side**2 if size is None else size[0] * size[1]) for size in sizes]
        images = content.split(lengths)
        made: dict[int, Tensor] = {}
        rows_of: dict[tuple[int, int] | None, list[int]] = {}
        for row, size in enumerate(sizes):
            rows_of.setdefault(size, []).append(row)
        for size, rows in rows_of.items():
            step = max(1, _GROUP // lengths[rows[0]])
            for some in (rows[start : start + step] for start in range(0, len(rows), step)):
                width, height = size or (self.side, self.side)
                group = torch.stack([images[row] for row in some]).view(-1, height, width, 3)
                if size is not None and self.resize is not None:
                    group = self.resize(group)
                made |= zip(some, group, strict=True)
        return torch.stack([made[row] for row in range(len(sizes))])

    def _equals_library(self, preprocess: Preprocess, steps: Resize) -> bool:
        """Return whether resizing on the device gives the same bytes as the model's library, for test images."""
        # The bytes differ e.g. with TF32.
        assert preprocess.pixels is not None
        assert self.resize is not None
        for image in _noise(steps.size):
            if can_resize(*image.size, steps, self.side):
                array = torch.from_numpy(np.array(image)).to(self.resize.device)
                if not np.array_equal(self.resize(array[None])[0].cpu().numpy(), preprocess.pixels(image)):
                    return False
        return True


def exact_pixels(preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> ExactPixels | None:
    """Return an `ExactPixels` for a device, or None if its results would differ from those of the model's library."""
    table = pixel_table(preprocess)
    return None if table is None else ExactPixels(preprocess, table, device, dtype)


def pixel_table(preprocess: Preprocess) -> Float[Tensor, "3 256"] | None:
    """Return a table with the tower's input for each channel and pixel value, or None.

    The values come from the model's library. The result is None if the table does not exactly reproduce the library's
    results for test images, e.g. because an input value depends on several pixels.
    """
    if preprocess.pixels is None or preprocess.image_size is None:
        return None
    side = getattr(preprocess.steps, "size", preprocess.image_size)
    table = torch.full((3, 256), torch.nan)
    checks = []

    def fill(image: Image.Image) -> bool:
        assert preprocess.pixels is not None
        pixels, inputs = torch.from_numpy(preprocess.pixels(image)), preprocess(image)
        values = inputs["pixel_values"]
        if len(inputs) > 1 or values.shape != (3, *pixels.shape[:2]) or values.dtype != torch.float32:
            return False
        for channel in range(3):
            table[channel, pixels[..., channel].long()] = values[channel]
        checks.append((pixels, values))
        return True

    if not all(fill(image) for image in _probes(side)):
        return None
    for value in table.isnan().any(dim=0).nonzero()[:, 0].tolist():  # resizing keeps an image of one color
        fill(Image.new("RGB", (side, side), (value, value, value)))
    equal = all(torch.equal(looked_up(table, pixels[None])[0], values) for pixels, values in checks)
    return table if equal and not table.isnan().any() else None


def looked_up(table: Float[Tensor, "3 256"], pixels: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Convert pixels to the tower's input by a table lookup. The result has channels last in memory."""
    first = torch.arange(3, dtype=torch.int32, device=pixels.device) * 256
    values = table.flatten().index_select(0, (pixels.int() + first).flatten())
    return values.view(pixels.shape).permute(0, 3, 1, 2)


def _probes(side: int) -> list[Image.Image]:
    """Return test images: noise, and one image with all values of each channel, which needs no resizing."""
    rows, columns = np.ogrid[:side, :side]
    values = (rows % 16 * 16 + columns % 16).astype(np.uint8)
    all_values = np.stack([values, 255 - values, values ^ 85], axis=-1)
    return [Image.fromarray(all_values), *_noise(side)]


def _noise(side: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    sizes = [(2 * side + 1, side + 7), (side // 2 + 3, side), (side, side)]
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
