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


def test_files_of_sugarcrepe_are_categories(folder: Path) -> None:
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


def test_winoground_images_have_no_extension(folder: Path) -> None:
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
        ([], "no rows"),
    ],
)
def test_errors_name_the_row_or_image(rows: list[list[str]], message: str, folder: Path) -> None:
    file = write_csv(folder / "d.csv", HEADER, rows)
    with pytest.raises(DataError, match=message):
        read_near_misses(str(file))


def test_unsupported_files_are_refused(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "one.csv", HEADER, [["images/0.png", "a", "b"]])
    write_csv(folder / "two.csv", ["image_0", "image_1", "caption_0", "caption_1"], [["0", "1", "a", "b"]])
    with pytest.raises(DataError, match="one image .* two images"):
        read_near_misses(str(folder))
    with pytest.raises(DataError, match="not found"):
        read_near_misses("none.csv")
    with pytest.raises(DataError, match=r"images: .*\.csv"):
        read_near_misses(str(folder / "images"))
    (folder / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json"):
        read_near_misses(str(folder / "x.json"))
    with pytest.raises(DataError, match="option image"):
        read_near_misses(f"{folder / 'one.csv'}?image=x")
    write_csv(folder / "three.csv", ["image", "caption"], [["images/0.png", "a"]])
    with pytest.raises(DataError, match="has no column negative_caption"):
        read_near_misses(str(folder / "three.csv"))


def test_winoground_groups_and_missing_values(folder: Path) -> None:
    header = ["image_0", "image_1", "caption_0", "caption_1", "tag"]
    file = write_csv(folder / "pairs.csv", header, [["0", "1", "a b", "b a", "Object"], ["1", "2", "c d", "d c", ""]])
    assert read_near_misses(str(file)).categories == ["Object", "pairs"]
    write_csv(folder / "pairs.csv", header, [["0", "1", "a b", "b a", "x"], ["1", "2", "", "d c", "x"]])
    with pytest.raises(DataError, match="row 2 has no caption_0"):
        read_near_misses(str(file))
