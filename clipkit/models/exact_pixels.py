"""Scaling and normalization of pixels on a device, with the values that the model's library computes on the CPU."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from clipkit.models.preprocess import Preprocess


def pixel_table(preprocess: Preprocess) -> Float[Tensor, "3 256"] | None:
    """Return the input of the tower for each value of each channel, or None if the bytes do not determine it.

    The library fills the table; images of odd sizes show that looking up its bytes gives its result, bit by bit.
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
    for value in table.isnan().any(dim=0).nonzero()[:, 0].tolist():  # resizing does not change a flat image
        fill(Image.new("RGB", (side, side), (value, value, value)))
    equal = all(torch.equal(looked_up(table, pixels[None])[0], values) for pixels, values in checks)
    return table if equal and not table.isnan().any() else None


def looked_up(table: Float[Tensor, "3 256"], pixels: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Return the tower's input for pixels; channels are last in memory."""
    first = torch.tensor([0, 256, 512], dtype=torch.int32, device=pixels.device)
    values = table.flatten().index_select(0, (pixels.int() + first).flatten())
    return values.view(pixels.shape).permute(0, 3, 1, 2)


def _probes(side: int) -> list[Image.Image]:
    """Return an image that needs no resizing and whose crops have all values in each channel, and images of noise."""
    rows, columns = np.ogrid[:side, :side]
    values = (rows % 16 * 16 + columns % 16).astype(np.uint8)
    all_values = np.stack([values, 255 - values, values ^ 85], axis=-1)
    draw = np.random.default_rng(0)
    sizes = [(2 * side + 1, side + 7), (side // 2 + 3, side), (side, side)]
    noise = [draw.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    return [Image.fromarray(array) for array in (all_values, *noise)]
