"""Rules about run folders, and folders written by earlier versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.findings import apply
from clipkit.recipe import Recipe
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.guards.doctor import FOLDER_RULES, Examined
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
