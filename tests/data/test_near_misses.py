import json
from pathlib import Path

import pytest

from clipkit.data import read_near_misses
from clipkit.errors import DataError
from tests.conftest import draw, write_csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        draw("red", "square", shift=number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def test_sugarcrepes_files_are_categories(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    for name, negative in (("add_att", "a blue square"), ("swap_obj", "a square red")):
        rows = {
            str(n): {"filename": f"{n}.png", "caption": "a red square", "negative_caption": negative} for n in range(3)
        }
        (data / f"{name}.json").write_text(json.dumps(rows))
    near = read_near_misses(f"{data}?images={folder / 'images'}")
    assert near.categories == ["add_att"] * 3 + ["swap_obj"] * 3
    assert near.image_positions.tolist() == [[0], [1], [2]] * 2
    assert [near.captions[text] for text in near.caption_positions[3]] == ["a red square", "a square red"]
    assert read_near_misses(f"{data / 'add_att.json'}?images={folder / 'images'}").categories == ["add_att"] * 3


def test_winogrounds_lines_name_images_without_their_ending(folder: Path) -> None:
    row = {"id": 0, "image_0": "0", "image_1": "1", "caption_0": "a b", "caption_1": "b a", "collapsed_tag": "Object"}
    (folder / "examples.jsonl").write_text(json.dumps(row) + "\n")
    near = read_near_misses(str(folder / "examples.jsonl"))
    assert near.image_positions.tolist() == [[0, 1]]
    assert near.caption_positions.tolist() == [[0, 1]]
    assert near.categories == ["Object"]
    assert [image.name for image in near.images] == ["0.png", "1.png"]


HEADER = ["image", "caption", "negative_caption"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["images/0.png", "a", ""]], "row 1 has no negative_caption"),
        ([["images/9.png", "a", "b"]], r"image .*9\.png is missing"),
        ([], "has none"),
    ],
)
def test_what_is_wrong_is_named(rows: list[list[str]], message: str, folder: Path) -> None:
    file = write_csv(folder / "d.csv", HEADER, rows)
    with pytest.raises(DataError, match=message):
        read_near_misses(str(file))


def test_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "one.csv", HEADER, [["images/0.png", "a", "b"]])
    write_csv(folder / "two.csv", ["image_0", "image_1", "caption_0", "caption_1"], [["0", "1", "a", "b"]])
    with pytest.raises(DataError, match="of one image and of two"):
        read_near_misses(str(folder))
    with pytest.raises(DataError, match="no such file"):
        read_near_misses("none.csv")
    with pytest.raises(DataError, match="holds none of"):
        read_near_misses(str(folder / "images"))
    (folder / "x.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_near_misses(str(folder / "x.json"))
    with pytest.raises(DataError, match="image is no option"):
        read_near_misses(f"{folder / 'one.csv'}?image=x")
