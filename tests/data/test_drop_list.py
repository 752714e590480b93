"""Images and captions on a user's list are dropped from the cleaned copy."""

import csv
import json
from pathlib import Path

import pytest

from clipkit.data import read_pairs
from clipkit.data.checks import check, fix, read_drop_list
from clipkit.errors import DataError
from tests.conftest import write_csv


def written(folder: Path, *entries: dict[str, str]) -> Path:
    file = folder / "drop.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def test_listed_images_and_captions_are_dropped(shapes: Path, tmp_path: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    caption = pairs.captions[int((pairs.image_of_caption == 5).argmax())]
    entries = [{"image": "images/03.png", "reason": "blurred"}, {"image": "images/05.png", "caption": f" {caption}"}]
    listed = read_drop_list(written(tmp_path, *entries), pairs)
    kept = fix(pairs, check(pairs), tmp_path / "out", drop=listed)
    assert kept == {"images": 15, "captions": 29, "dropped": 4}
    with (tmp_path / "out" / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {Path(row["image"]).name for row in rows}
    assert "03.png" not in names
    assert [row["caption"] for row in rows if Path(row["image"]).name == "05.png"] != [caption]
    assert caption not in [row["caption"] for row in rows if Path(row["image"]).name == "05.png"]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {entry["reason"] for entry in dropped} == {"blurred", "is in drop.jsonl"}
    again = read_drop_list(tmp_path / "out" / "dropped.jsonl", pairs)
    assert again.images.keys() == listed.images.keys()


def test_a_copy_of_a_listed_image_stays(shapes: Path, tmp_path: Path) -> None:
    content = (shapes / "images" / "00.png").read_bytes()
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(content)
    data = write_csv(tmp_path / "d.csv", ["image", "caption"], [[f"{name}.png", f"square {name}"] for name in "abc"])
    pairs = read_pairs(str(data))
    listed = read_drop_list(written(tmp_path, {"image": "a.png"}), pairs)
    fix(pairs, check(pairs), tmp_path / "out", drop=listed)
    with (tmp_path / "out" / "captions.csv").open() as file:
        rows = [(Path(row["image"]).name, row["caption"]) for row in csv.DictReader(file)]
    assert rows == [("b.png", "square b"), ("b.png", "square c")]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"image": "gone.png"}, "gone.png"),
        ({"image": "images/03.png", "caption": "of another"}, "of another"),
        ({"image": 3}, "entry 1"),
        ({"file": "images/03.png"}, "entry 1"),
        ({"image": "images/03.png", "row": "3"}, "entry 1"),
    ],
)
def test_a_list_of_other_data_is_refused(entry: dict[str, str], named: str, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=named):
        read_drop_list(written(tmp_path, entry), read_pairs(str(shapes / "captions.csv")))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b""])
def test_a_damaged_list_is_one_line(content: bytes, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "drop.jsonl").write_bytes(content)
    pairs = read_pairs(str(shapes / "captions.csv"))
    if not content:
        assert not read_drop_list(tmp_path / "drop.jsonl", pairs).images
        return
    with pytest.raises(DataError, match=r"drop\.jsonl"):
        read_drop_list(tmp_path / "drop.jsonl", pairs)
