"""Processes that start late, and processes whose launcher is gone."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clipkit.recipe import Recipe
from tests.forked import ENVIRONMENT, Running, free_port, python

ONE_LINE = """
import sys
from clipkit.errors import TrainingError
from clipkit.processes import accelerator_of
try:
    accelerator_of(timeout_minutes=0.02)
except TrainingError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_starts_is_one_line(rank: int) -> None:
    group = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = python("-c", ONE_LINE, environment=ENVIRONMENT | group | {"MASTER_PORT": str(free_port())})
    assert "the 2 processes did not all connect within 0.02 minutes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_was_killed(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(recipe({"train.epochs": 5000, "eval.every_epochs": 5000}).to_yaml())
    launcher = Running(["-m", "clipkit", "train", file, "--processes", "2"])
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < end:
        time.sleep(0.1)
    children = psutil.Process(launcher.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(launcher.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))  # as after SIGTERM
    launcher.communicate()
