"""`clipkit doctor` and `clipkit runs` on the command line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.cli import main
from tests.conftest import small_recipe


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, shapes: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("low", 1e-5), ("high", 3e-3)):
        clipkit.train(small_recipe(tiny_clip, shapes, folder / name).override({"optim.lr": lr, "train.epochs": 3}))
    return folder


def printed_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_runs_are_listed_and_compared(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = printed_by(monkeypatch, capsys, "runs", two_runs)
    assert all(
        name in printed for name in ("low", "high", "finished", "captions.csv", "mean recall", "on images", " 16 ")
    )
    printed = printed_by(monkeypatch, capsys, "runs", "compare", two_runs / "low", two_runs / "high")
    assert "optim.lr" in printed
    assert "B − A (95 % interval)" in printed
    assert "data.train" not in printed  # equal in both
    assert "retrieval on " in printed
    assert "(16 images, 32 captions)" in " ".join(printed.split())


def test_doctor_reports_a_high_learning_rate_of_a_finished_run(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = printed_by(monkeypatch, capsys, "doctor", two_runs / "high")
    assert "finished after step 6" in printed
    assert "optim.lr is 0.003, " in printed
    diagnosis = json.loads(printed_by(monkeypatch, capsys, "doctor", two_runs / "low", "--json"))
    assert "high_learning_rate" not in [finding["name"] for finding in diagnosis["findings"]]


def test_doctor_reports_the_step_of_an_unfinished_run(
    two_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(two_runs / "high", tmp_path / "run")
    for name in ("results.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])  # killed while writing
    printed = printed_by(monkeypatch, capsys, "doctor", tmp_path / "run")
    assert "is at step 4 of 6, not finished" in printed
    assert "--resume" in printed
    (tmp_path / "run" / "findings.json").write_text("{")
    assert "is at step 4, not finished" in printed_by(monkeypatch, capsys, "doctor", tmp_path / "run")


def test_invalid_folders_and_arguments_are_refused(
    two_runs: Path, tmp_path: Path, said_here: Callable[..., str]
) -> None:
    assert "no recipe.yaml" in said_here("doctor", tmp_path)
    assert "contains no run" in said_here("runs", tmp_path)
    assert "folder not found" in said_here("runs", tmp_path / "nowhere")
    assert "clipkit runs DIR, or clipkit runs compare A B" in said_here("runs", "compare", two_runs)
    assert "recipe.yaml" in said_here("runs", "compare", two_runs / "low", tmp_path)
