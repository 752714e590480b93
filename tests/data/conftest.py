"""Fixtures of the tests of data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_csv


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw an image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """11 images of different shapes with one to three captions each, not in the order of their names."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = []
    for number in reversed(range(11)):
        name = f"{number:02d}.{('jpg', 'png')[number % 2]}"
        noise(40 + 3 * number, 60 - 2 * number, number).save(folder / name)
        rows += [[name, f"caption {more} of {number}, “é”"] for more in range(1 + number % 3)]
    return write_csv(folder / "captions.csv", ["image", "caption"], rows)
