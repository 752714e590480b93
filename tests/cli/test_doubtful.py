"""`clipkit data doubtful` writes a list that `clipkit data check --fix` takes."""

import csv
import json
import sys
from pathlib import Path

import pytest

from clipkit.cli import main
from tests.training.test_closed_form import recipe_of
from tests.training.test_cross_fit import SMALL


def test_listed_captions_are_dropped_from_a_copy(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out

    Path("recipe.yaml").write_text(recipe_of(shapes, tmp_path / "run", **SMALL).to_yaml())
    out = typed("data", "doubtful", "recipe.yaml", "--precision", 0)
    listed = [json.loads(line) for line in Path("doubtful.jsonl").read_text().splitlines()]
    assert "doubtful.jsonl: 32 captions" in out
    assert not Path("run").exists()
    Path("some.jsonl").write_text("\n".join(map(json.dumps, listed[:2])))
    typed("data", "check", shapes / "captions.csv", "--fix", "cleaned", "--drop", "some.jsonl")
    with Path("cleaned/captions.csv").open() as file:
        kept = [row["caption"] for row in csv.DictReader(file)]
    assert len(kept) == 30
    assert not {row["caption"] for row in listed[:2]} & set(kept)
