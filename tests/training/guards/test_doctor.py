"""Rules about run folders, and folders written by earlier versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.findings import apply
from clipkit.recipe import Recipe
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.guards.doctor import FOLDER_RULES, Examined, examine
from clipkit.training.guards.record import read_findings


@pytest.mark.parametrize(
    ("recalls", "is_finished", "expected"),
    [
        ([0.1, 0.2, 0.3], True, ["still_rising"]),
        ([0.1, 0.2, 0.203], True, []),
        ([0.1, 0.2, 0.3], False, ["unfinished"]),
        ([0.3, 0.2, 0.25], True, ["best_at_first"]),
        ([0.3, 0.2, 0.29], True, []),
        ([0.3, 0.2], True, []),
    ],
)
def test_evaluations_that_rise_or_fall(
    tmp_path: Path, recalls: list[float], is_finished: bool, expected: list[str]
) -> None:
    recipe = Recipe.from_dict(
        {
            "model": {"name": "x"},
            "data": {"train": "a.csv", "validation": "b.csv"},
            "optim": {"lr": 1e-5},
            "output": "r",
        }
    )
    evaluations: list[dict[str, Any]] = [{"step": step, recipe.metric: recall} for step, recall in enumerate(recalls)]
    examined = Examined(RunFolder(tmp_path), recipe, [{"step": 9}], evaluations, is_finished)
    findings = apply(FOLDER_RULES, examined)
    assert [finding.name for finding in findings] == expected


def test_findings_of_earlier_versions_are_read(tmp_path: Path) -> None:
    facts = {
        "batch_size": 8, "rising": 1, "steps": 9, "chance": None, "start_scale": 1.0, "largest_scale": None,
        "metric": None, "sides": ["image", "text"],
    }  # fmt: skip
    old = {"name": "data_wait", "level": "warning", "message": "34 % waits", "advice": "raise data.workers", "step": 60}
    (tmp_path / "findings.json").write_text(json.dumps({"facts": facts, "findings": [old]}))
    kept = read_findings(tmp_path)
    assert kept is not None
    (finding,) = kept[1]
    assert finding.line() == "warning at step 60: 34 % waits; raise data.workers"
    (tmp_path / "findings.json").write_text(json.dumps({"facts": facts, "findings": [finding.to_dict()]}))
    assert read_findings(tmp_path) == kept


@pytest.mark.parametrize("name", ["metrics", "speed", "evaluations", "bad_samples"])
@pytest.mark.parametrize(
    "row", [{}, {"loss": 1.0}, {"renamed": 1.0}, {"loss": "x", "grad_norm": None}, {"pairs_per_second": [1]}]
)
def test_rows_without_their_numbers_count_as_damaged(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.recipe.write_text("{model: {name: x}, data: {train: a.csv, validation: b.csv}, optim: {lr: 1.0e-5}, output: r}")
    run.results.write_text(json.dumps({"settings": {"steps": 200}}))
    rows: dict[str, dict[str, Any]] = {
        "metrics": {"loss": 1.0, "grad_norm": 1.0, "scale": 9.0},
        "speed": {"pairs_per_second": 1.0, "data_wait_seconds": 0.5, "step_seconds": 1.0},
        "evaluations": {"mean_recall": 0.5},
        "bad_samples": {"image": 3},
    }
    for kind, whole in rows.items():
        lines = [{"step": step, **whole} for step in range(1, 200)]
        lines[100:100] = [{"step": 100, **row}] if kind == name else []
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state, findings = examine(tmp_path)
    assert state
    assert "data_wait" in [finding.name for finding in findings]
