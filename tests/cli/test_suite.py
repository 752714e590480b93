"""`clipkit eval suite` on the command line."""

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
    """A suite with one missing dataset, and one with an unexpected number of captions."""
    file = tmp_path / "mine.yaml"
    captions = str(shapes / "captions.csv")
    datasets: list[dict[str, Any]] = [
        {"name": "colors", "task": "zeroshot", "source": str(shapes / "classes.csv")},
        {"name": "gone", "task": "retrieval", "source": str(tmp_path / "gone.csv")},
        {"name": "captions", "task": "retrieval", "source": captions},
        {"name": "fewer", "task": "retrieval", "source": captions, "captions": 3},
    ]
    file.write_text(yaml.safe_dump({"name": "mine", "datasets": datasets}))
    return file


def exit_code(*arguments: str | Path) -> int:
    """Run it in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["clipkit", "eval", "suite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_exit_codes_and_written_files(
    mine: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["--model", str(tiny_clip), "--out", out, "--cache", "none"]
    assert exit_code(mine, *command) == 1  # fewer is available, but invalid
    printed = capsys.readouterr()
    assert "gone: not available: " in printed.out
    assert "fewer: failed: " in printed.out
    assert "mean recall" in printed.out
    assert "Traceback" not in printed.err
    assert {file.name for file in out.iterdir()} >= {"results.json", "table.md", "report.html"}
    assert "Unavailable: gone: " in (out / "table.md").read_text()

    values = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump(values | {"datasets": values["datasets"][:3]}))
    assert exit_code(mine, *command) == 0  # a missing dataset is not a failure
    assert capsys.readouterr().out.count("(measured before)") == 2
    mine.write_text(yaml.safe_dump(values | {"datasets": values["datasets"][1:2]}))
    assert exit_code(mine, *command) == 1
    assert "clipkit: " in (error := capsys.readouterr().err)
    assert "no dataset could be evaluated" in error
    assert "1 not available" in error


@pytest.mark.slow
def test_several_processes_give_the_same_results(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipkit", "eval", "suite", str(mine), "--model", str(tiny_clip)]
    environment = os.environ | {"CLIPKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def run(out: str, *more: str) -> str:
        whole = [*command, "--out", str(tmp_path / out), *more]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 1, done.stderr  # fewer fails on all processes
        return done.stdout

    one = run("one", "--cache", "none")
    two = run("two", "--processes", "2")
    assert one.replace("/one", "/two") == two  # only the main process prints
    results = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two")]
    # A mean rank may differ by one place where two scores are equal up to rounding.
    left_out = ("seconds", "metrics")
    rows = [[{key: row[key] for key in row if key not in left_out} for row in one["rows"]] for one in results]
    assert rows[0] == rows[1]
    assert results[0]["failed"] == results[1]["failed"]
    next((tmp_path / "two").glob("*--captions.json")).unlink()
    assert run("two", "--processes", "2").count("(measured before)") == 1
