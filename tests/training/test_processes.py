"""Real processes, by gloo."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipkit.recipe import Recipe
from tests.conftest import read_lines


def torchrun(processes: int, *arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--standalone",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_train_what_one_does(recipe: Any, tmp_path: Path) -> None:
    """An odd batch, so that slices are uneven."""
    changes = {"train.batch_size": 7, "train.epochs": 3}
    for processes in (1, 2):
        built: Recipe = recipe({**changes, "output": str(tmp_path / f"run{processes}")})
        file = tmp_path / f"{processes}.yaml"
        file.write_text(built.to_yaml())
        said = torchrun(processes, "-m", "clipkit", "train", str(file))
        assert said.startswith(f"{processes} process")
    one, two = (read_lines(tmp_path / f"run{processes}" / "metrics.jsonl") for processes in (1, 2))
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["scale"] == pytest.approx(a["scale"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
