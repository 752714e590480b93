"""Fixtures of the model tests."""

from pathlib import Path

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sizes and modes that exercise resizing, cropping by odd margins, and conversion."""
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number, (size, mode) in enumerate([((48, 32), "RGB"), ((33, 70), "RGB"), ((201, 164), "L"), ((20, 20), "P")]):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator).numpy()
        made.append(folder / f"{number}.png")
        Image.fromarray(pixels).convert(mode).save(made[-1])
    return made
