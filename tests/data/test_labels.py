from pathlib import Path

import pytest

from clipkit.data import read_labeled
from clipkit.errors import DataError
from tests.conftest import draw, write_csv


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, colour in enumerate(("red", "green", "blue")):
        draw(colour, "square").save(tmp_path / f"{number}.png")
    return tmp_path


def test_rows_of_one_image_are_one_image(images: Path) -> None:
    rows = [["0.png", "b"], ["1.png", "a"], ["0.png", "b"], ["2.png", "b"]]
    labelled = read_labeled(str(write_csv(images / "d.csv", ["image", "label"], rows)))
    assert [path.name for path in labelled.images] == ["0.png", "1.png", "2.png"]
    assert labelled.classes == ["a", "b"]
    assert labelled.labels.tolist() == [1, 0, 1]
    assert not labelled.several


def test_several_labels_of_one_image(images: Path) -> None:
    rows = [["0.png", "b"], ["1.png", "a"], ["0.png", "c"], ["2.png", "b"]]
    labelled = read_labeled(str(write_csv(images / "d.csv", ["image", "label"], rows)))
    assert labelled.several
    assert labelled.labels.tolist() == [[False, True, True], [True, False, False], [False, True, False]]


def test_a_row_without_a_label_is_named(images: Path) -> None:
    file = write_csv(images / "d.csv", ["image", "label"], [["0.png", "b"], ["1.png", " "]])
    with pytest.raises(DataError, match="row 2 has no label"):
        read_labeled(str(file))
