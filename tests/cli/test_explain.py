"""Command `clipkit explain`."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.errors import UserError


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["explain", *map(str, arguments)], catch_exceptions=False)
    return done.output


def test_an_image_is_explained_scored_and_drawn(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    image = shapes / "images/00.png"
    out, file = tmp_path / "maps.png", tmp_path / "maps.json"
    printed = run("--model", tiny_clip, "--image", image, "--text", "a $red$ square", "--out", out, "--json", file)
    assert "deletion AUC" in printed
    assert "$red$" in printed
    (text,) = json.loads(file.read_text())["texts"]
    assert [word["word"] for word in text["words"]] == ["a", "$red$", "square"]
    assert len(text["map"]) == len(text["map"][0]) == 4
    assert text["scores"]["random"]["deletion"] != text["scores"]["map"]["deletion"]
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
    run("--model", tiny_clip, "--image", image, "--text", "red", "--no-score", "--out", out, "--json", file)
    assert json.loads(file.read_text())["texts"][0]["text"] == "red"  # the same command may be repeated


def test_data_is_scored(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    data = shapes / "captions.csv"
    printed = run("--model", tiny_clip, "--data", data, "--images", 2, "--method", "patches", "--json", file)
    assert "rank correlation with occlusion" in printed
    result = json.loads(file.read_text())
    assert result["settings"]["method"] == "patches"


def test_an_image_is_explained_against_other_texts(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "maps.json"
    command = ("--model", tiny_clip, "--image", shapes / "images/00.png", "--text", "red", "--method", "occlusion")
    maps = []
    for against in ((), ("--against", "blue", "--against", "green")):
        run(*command, *against, "--no-score", "--json", file)
        found = json.loads(file.read_text())
        assert found["against"] == list(against[1::2])
        maps.append(torch.tensor(found["texts"][0]["map"]))
    assert maps[0].shape == (7, 7)
    assert not torch.allclose(*maps)
    assert "2 other texts" in run(*command, "--against", "blue", "--against", "green")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--image", "a.png"), "--text"),
        (("--text", "a"), "--image"),
        (("--image", "a.png", "--text", "a", "--data", "d.csv"), "--data"),
        (("--image", "missing.png", "--text", "a"), "missing.png"),
        (("--data", "d.csv", "--out", "x.png"), "--out"),
        (("--data", "d.csv", "--against", "a cat"), "--against"),
        (("--data", "d.csv", "--no-score"), "--no-score"),
        (("--image", "a.png", "--text", "a", "--images", "3"), "--images"),
    ],
)
def test_wrong_arguments_are_refused(tiny_clip: Path, arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        run("--model", tiny_clip, *arguments)
