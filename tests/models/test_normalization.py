"""Bytes are normalized to the same bits in every memory layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clipkit.models.preprocess import Preprocess

PREPROCESS = Preprocess(lambda image: {}, 4, (0.48, 0.45, 0.40), (0.26, 0.26, 0.27))
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda pixels: pixels,
    "channels last": lambda pixels: pixels.contiguous(memory_format=torch.channels_last),
    "part of larger images": lambda pixels: torch.cat([pixels, pixels], dim=3)[:, :, :, :5],
    "part, channels last": lambda pixels: torch.cat([pixels, pixels], dim=3)
    .contiguous(memory_format=torch.channels_last)[:, :, :, :5],
    "transposed": lambda pixels: pixels.transpose(2, 3).contiguous().transpose(2, 3),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_normalized_bytes_do_not_depend_on_the_layout(layout: str) -> None:
    pixels = torch.arange(7 * 3 * 6 * 5, dtype=torch.int64).view(7, 3, 6, 5).mul(37).remainder(256).to(torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESS.mean, PREPROCESS.std))
    expected = (pixels.float().mul(1 / 255) - mean) / std
    found = PREPROCESS.normalized({"pixel_values": LAYOUTS[layout](pixels)})["pixel_values"]
    assert torch.equal(found, expected)
    assert torch.equal(PREPROCESS.normalized({"pixel_values": LAYOUTS[layout](pixels)[2]})["pixel_values"], expected[2])


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_normalized_bytes_on_a_gpu(layout: str) -> None:
    pixels = LAYOUTS[layout](torch.randint(0, 256, (7, 3, 6, 5), dtype=torch.uint8))
    expected = PREPROCESS.normalized({"pixel_values": pixels})["pixel_values"]
    found = PREPROCESS.normalized({"pixel_values": pixels.cuda()})["pixel_values"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
