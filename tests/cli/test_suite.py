"""`clipkit eval suite` as it is typed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipkit.cli import main


@pytest.fixture
def mine(shapes: Path, tmp_path: Path) -> Path:
    """A suite of which one data set is missing and one is not what it should be."""
    file = tmp_path / "mine.yaml"
    captions = str(shapes / "captions.csv")
    datasets: list[dict[str, Any]] = [
        {"name": "colours", "task": "zeroshot", "source": str(shapes / "classes.csv")},
        {"name": "gone", "task": "retrieval", "source": str(tmp_path / "gone.csv")},
        {"name": "captions", "task": "retrieval", "source": captions},
        {"name": "fewer", "task": "retrieval", "source": captions, "captions": 3},
    ]
    file.write_text(yaml.safe_dump({"name": "mine", "datasets": datasets}))
    return file


def typed(*arguments: str | Path) -> int:
    """Its exit code, in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["clipkit", "eval", "suite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_exit_codes_and_what_is_written(
    mine: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["--model", str(tiny_clip), "--out", out, "--cache", "none"]
    assert typed(mine, *command) == 1  # fewer is there, and wrong
    said = capsys.readouterr()
    assert "gone: not reached: " in said.out
    assert "fewer: failed: " in said.out
    assert "mean recall" in said.out
    assert "Traceback" not in said.err
    assert {own.name for own in out.iterdir()} >= {"results.json", "table.md", "report.html"}
    assert "Unavailable: gone: " in (out / "table.md").read_text()

    values = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump(values | {"datasets": values["datasets"][:3]}))
    assert typed(mine, *command) == 0  # what is not there is no failure
    assert capsys.readouterr().out.count("(measured before)") == 2
    mine.write_text(yaml.safe_dump(values | {"datasets": values["datasets"][1:2]}))
    assert typed(mine, *command) == 1
    assert "clipkit: " in (error := capsys.readouterr().err)
    assert "nothing was measured, 1 could not be reached" in error


@pytest.mark.slow
def test_several_processes_find_the_same(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipkit", "eval", "suite", str(mine), "--model", str(tiny_clip)]
    environment = os.environ | {"CLIPKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def run(out: str, *more: str) -> str:
        whole = [*command, "--out", str(tmp_path / out), *more]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 1, done.stderr  # fewer has failed, on all of them
        return done.stdout

    one = run("one", "--cache", "none")
    two = run("two", "--processes", "2")
    assert one.replace("/one", "/two") == two  # one of them speaks
    found = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two")]
    rows = [[{key: own for key, own in row.items() if key != "seconds"} for row in one["rows"]] for one in found]
    assert rows[0] == rows[1]
    assert found[0]["failed"] == found[1]["failed"]
    next((tmp_path / "two").glob("*--captions.json")).unlink()
    assert run("two", "--processes", "2").count("(measured before)") == 1
