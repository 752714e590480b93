"""Fixtures of the tests of guards."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import write_csv


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """64 pairs with different captions."""
    folder = tmp_path_factory.mktemp("plain")
    images = sorted((shapes / "images").iterdir())
    rows = []
    for number in range(64):
        shutil.copy(images[number % len(images)], folder / f"{number}.png")
        rows.append([f"{number}.png", f"a {'very ' * (number % 3)}nice image number {number}"])
    return write_csv(folder / "pairs.csv", ["image", "caption"], rows)
