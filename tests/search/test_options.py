"""Options that are refused before the model is loaded, and locations of images in an index."""

from pathlib import Path
from typing import Any

import pytest

from clipkit.cli.output import check_writable
from clipkit.errors import DataError, UserError
from clipkit.models import DualEncoder
from clipkit.search import Index, embed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"where": "yeer > 1"}, "did you mean year"),
        ({"precision": 90}, "precision 90"),
        ({"precision": 0.9}, "captions"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    index_folder: Path, options: dict[str, Any], named: str
) -> None:
    index = Index(index_folder, model="nowhere/model")
    with pytest.raises(UserError, match=named):
        index.search("a dog", **options)
    with pytest.raises(UserError, match=named):
        index.search_many(["a dog"], **options)


def test_data_are_read_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: contains no images; give a folder with images"):
        embed(str(tmp_path / "empty"), "nowhere/model", tmp_path / "index")


def test_an_image_has_several_names(index_folder: Path, shapes: Path, tmp_path: Path) -> None:
    index = Index(index_folder)
    copy = tmp_path / "a b ü.png"
    copy.write_bytes((shapes / "images" / "05.png").read_bytes())
    assert {
        index.row_of(name) for name in ("images/05.png", "05.png", str(shapes / "images" / "05.png"), str(copy))
    } == {5}
    for name in ("gone.png", str(tmp_path), "\0"):
        with pytest.raises(DataError, match="no image with the location"):
            index.row_of(name)


def test_a_location_must_be_unique(shapes: Path, model: DualEncoder, tmp_path: Path) -> None:
    for number, name in enumerate(("1.png", "a/1.png", "b/2.png", "c/2.png")):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).write_bytes((shapes / "images" / f"{number:02}.png").read_bytes())
    index = Index(embed(str(tmp_path / "album"), model, tmp_path / "index").folder)
    assert index.rows["image"].to_pylist() == ["1.png", "a/1.png", "b/2.png", "c/2.png"]
    assert index.row_of("1.png") == 0
    with pytest.raises(DataError, match="2.png: fits 2 images of the index, such as b/2.png and c/2.png"):
        index.row_of("2.png")


def test_a_read_only_folder_is_found_before_any_work(
    index_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for folder in (tmp_path / "new", index_folder):
        with pytest.raises(UserError, match=f"{folder}.*read-only"):
            embed("nowhere.csv", "nowhere/model", folder)
    with pytest.raises(UserError, match=r"s.html.*read-only"):
        check_writable(tmp_path / "s.html")


def test_another_source_does_not_replace_an_index(
    shapes: Path, table: Path, model: DualEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    lines = table.read_text().splitlines()
    rows = [line if not n else f"{shapes}/{line}" for n, line in enumerate(lines)]
    for name, taken in (("a.csv", rows), ("renamed.csv", rows[:-8]), ("b.csv", rows[:6])):
        (tmp_path / name).write_text("\n".join(taken) + "\n")
    embed(str(tmp_path / "a.csv"), model, folder)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"a.csv.*images would remove 32 of the 32 distinct captions"):
        embed(str(shapes / "images"), model, folder)
    with pytest.raises(UserError, match=r"b.csv would remove \d+ of the 16 images"):
        embed(str(tmp_path / "b.csv"), model, folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert embed(str(tmp_path / "renamed.csv"), model, folder).removed
    (tmp_path / "renamed.csv").write_text("\n".join(rows[:4]) + "\n")
    assert embed(str(tmp_path / "renamed.csv"), model, folder).removed
