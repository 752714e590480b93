"""Runs that are killed at random moments and resumed give the same bits as an undisturbed run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.recipe import Recipe
from tests.conftest import read_lines
from tests.forked import python
from tests.training import kills
from tests.training.test_run import COMPOSED

# Dropout, averaged weights, evaluations; 4 steps per epoch, with checkpoints within the epochs.
CHANGES = {
    "model": {**COMPOSED, "text": {**COMPOSED["text"], "dropout": 0.2}},
    "data.captions": "all",
    "data.validation": None,
    "train.batch_size": 8,
    "train.micro_batch_size": 5,
    "train.ema": 0.9,
    "checkpoint.every_steps": 3,
    "eval.every_epochs": 2,
}
# In addition to captions, views of images and of captions, with a trainable head.
VIEWS = {
    "objective": {"captions": 1.0, "views": 1.0},
    "views": {
        "image": {"policies": ["moco", "moco"], "head": {"norm": "batch", "keep": True}},
        "text": {"policies": ["crop", "sibling"]},
    },
}


@pytest.mark.parametrize(
    ("processes", "times", "epochs", "views"),
    [
        (1, 2, 2, True),
        pytest.param(1, 20, 30, False, marks=pytest.mark.slow),
        pytest.param(2, 10, 20, True, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_run_gives_the_same_bits(
    recipe: Callable[..., Recipe], tmp_path: Path, shapes: Path, processes: int, times: int, epochs: int, views: bool
) -> None:
    changes = {**CHANGES, "data.validation": str(shapes / "captions.csv"), "train.epochs": epochs}
    if views:
        changes |= VIEWS
    files = [tmp_path / "whole.yaml", tmp_path / "killed.yaml"]
    for file in files:
        file.write_text(recipe({**changes, "output": str(file.with_suffix(""))}).to_yaml())
    done = python(kills.__file__, str(processes), str(times), *files, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    killed = json.loads(done.stdout.splitlines()[-1])
    assert sum(killed.values()) == times
    if times == 20:
        assert min(killed.values()) > 0  # every kind of moment occurred
    assert [row["step"] for row in read_lines(tmp_path / "killed" / "metrics.jsonl")] == [*range(1, 4 * epochs + 1)]
    same_run(tmp_path / "killed", tmp_path / "whole")


def same_run(one: Path, two: Path) -> None:
    """Check that everything that the recipe determines is equal to the bit, and that no temporary folders are left."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    files = sorted(path.relative_to(two / "model") for path in (two / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        assert (one / "model" / file).read_bytes() == (two / "model" / file).read_bytes(), file
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["settings"] == results[1]["settings"]
    assert not [path for path in one.rglob(".*") if path.is_dir()]
    clipkit.load(one)
