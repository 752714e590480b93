"""`clipkit embed` and `clipkit search` as they are typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import type_
from tests.conftest import write_csv


def test_from_images_to_results(
    shapes: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "shapes.index"
    type_(monkeypatch, "embed", shapes / "captions.csv", "--model", tiny_clip, "--out", index)
    assert "16 images with 32 captions; 16 newly encoded" in capsys.readouterr().out
    type_(monkeypatch, "search", index, "a red square", "--minus", "a circle", "-k", "3", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["results"]) == 3
    assert answer["results"][0]["image"].startswith("images/")
    photo, page = shapes / "images" / "05.png", tmp_path / "<b>.html"
    type_(monkeypatch, "search", index, "--image", photo, "-k", "2", "--show", page)
    output = capsys.readouterr().out
    assert "images/05.png" in next(line for line in output.splitlines() if "images/" in line)
    assert page.read_text().count("data:image/jpeg") == 2
    (tmp_path / "queries.txt").write_text("a circle\n\na red square\n")
    type_(monkeypatch, "search", index, "--queries", tmp_path / "queries.txt", "-k", "1", "--json")
    assert [answer["query"] for answer in json.loads(capsys.readouterr().out)] == ["a circle", "a red square"]
    type_(monkeypatch, "search", index, "x", "--where", "captions contains 'purple'")
    assert "no image" in capsys.readouterr().out


def test_markup_in_names_and_captions_is_text(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: Path
) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes((shapes / "images" / "00.png").read_bytes())
    write_csv(tmp_path / "t.csv", ["image", "caption"], [[name, "<script>alert(1)</script>"]])
    type_(monkeypatch, "embed", tmp_path / "t.csv", "--model", tiny_clip, "--out", tmp_path / "index")
    type_(monkeypatch, "search", tmp_path / "index", "<b>x</b>", "--show", tmp_path / "s.html")
    page = (tmp_path / "s.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "<img src=x" not in page


def test_results_are_readable(
    shapes: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.png").write_bytes((shapes / "images" / "00.png").read_bytes())
    write_csv(tmp_path / "t.csv", ["image", "caption"], [["0.png", "a very long caption " * 5]])
    for data, index in ((tmp_path / "t.csv", tmp_path / "with"), (shapes / "images", tmp_path / "without")):
        type_(monkeypatch, "embed", data, "--model", tiny_clip, "--out", index)
    capsys.readouterr()
    type_(monkeypatch, "search", tmp_path / "with", "x")
    _, header, line = capsys.readouterr().out.rstrip().splitlines()
    assert line.endswith("…")
    assert header.index("caption") == line.index("a very")
    type_(monkeypatch, "search", tmp_path / "without", "x")
    assert "caption" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("search nowhere x", "nowhere"),
        ("search . x", "manifest.json"),
        ("search {index}", "no query"),
        ("search {index} x --image gone.png", "gone.png"),
        ("search {index} --image README.md", "README.md: is not an image"),
        ("search {index} --minus red", "--minus red"),
        ("search {index} x --queries gone.txt", "gone.txt"),
        ("search {index} --queries gone.txt", "gone.txt"),
        ("search {index} x --model nowhere/model", "nowhere/model"),
        ("search {index} x --show README.md", "README.md"),
        ("embed nowhere.csv --model . --out o", "nowhere.csv"),
        ("embed {index}/x.csv --model nowhere/model --out o", "nowhere/model"),
        ("embed . --model . --out .", "."),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    command: str, named: str, tmp_path: Path, said_here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    assert named in said_here(*command.format(index="index").split())
