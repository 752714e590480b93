"""`clipkit suggest` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.recipe import Recipe
from tests.cli.conftest import type_


def test_it_prints_or_writes_a_recipe_and_json(
    shapes: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = shapes / "captions.csv"
    type_(monkeypatch, "suggest", data, "--model", tiny_clip)
    printed = capsys.readouterr().out
    type_(monkeypatch, "suggest", data, "--model", tiny_clip, "--out", "r.yaml", "--json", "f.json")
    assert (tmp_path / "r.yaml").read_text() == printed
    assert "clipkit train r.yaml" in capsys.readouterr().out
    found = json.loads((tmp_path / "f.json").read_text())
    assert Recipe.from_dict(found["recipe"]) == Recipe.from_yaml(tmp_path / "r.yaml")


def test_wrong_input_is_one_line(said_here: Callable[..., str], shapes: Path, tiny_clip: Path, tmp_path: Path) -> None:
    data = shapes / "captions.csv"
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert "mine.yaml" in said_here("suggest", data, "--model", tiny_clip, "--out", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "a: 1\n"
    assert "gone.csv" in said_here("suggest", tmp_path / "gone.csv", "--model", tiny_clip)
    assert "gone.csv" in said_here("suggest", data, "--model", tiny_clip, "--validation", tmp_path / "gone.csv")
    assert "no_model" in said_here("suggest", data, "--model", tmp_path / "no_model")
    assert "--model" in said_here("suggest", data)
