"""An index of the colored shapes, with columns."""

import csv
from pathlib import Path

import pytest

from clipkit.models import DualEncoder, load
from clipkit.search import embed
from tests.conftest import write_csv


@pytest.fixture(scope="session")
def model(tiny_clip: Path) -> DualEncoder:
    return load(str(tiny_clip))


@pytest.fixture(scope="session")
def table(shapes: Path) -> Path:
    """CSV file with two captions per image, and the columns year (with gaps) and color."""
    with (shapes / "captions.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    written = []
    for image, caption in rows:
        number = int(Path(image).stem)
        color = ["red", "green", "blue", "yellow"][number // 4]
        written.append([image, caption, "" if number == 3 else str(2010 + number), color])
    return write_csv(shapes / "columns.csv", ["image", "caption", "year", "color"], written)


@pytest.fixture(scope="session")
def index_folder(table: Path, model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of 16 images with 32 captions; tests must not change it."""
    folder = tmp_path_factory.mktemp("index") / "shapes.index"
    embed(str(table), model, folder)
    return folder
