"""Failures during a run give a one-line error, and saved files stay complete."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import clipkit
from clipkit.errors import DataError, OutputError, TrainingError
from clipkit.models.towers import Tower
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.failures import failures_in_one_line
from clipkit.training.folder.checkpoint import checkpoint_steps, damage
from clipkit.training.folder.run_folder import RunFolder
from tests.conftest import read_lines
from tests.forked import ENVIRONMENT, python, together
from tests.training import second_runs_out
from tests.training.second_runs_out import OutOfMemory
from tests.training.test_kills import same_run
from tests.training.test_stop import running, wait_for_steps, write

Build = Callable[..., Recipe]
CHANGES = {"train.epochs": 30, "train.batch_size": 5, "checkpoint.every_steps": 4, "eval.every_epochs": 1000}


def intact_checkpoints(folder: Path) -> list[int]:
    run = RunFolder(folder)
    steps = checkpoint_steps(run.checkpoints)
    assert [damage(run.checkpoints / f"step-{step:06d}") for step in steps] == [None] * len(steps)
    assert not list(run.checkpoints.glob(".*"))
    return steps


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_other_processes_end_when_one_is_killed(recipe: Build, tmp_path: Path, dies: int) -> None:
    file = write(recipe({**CHANGES, "train.epochs": 3000}), tmp_path / "r.yaml")
    with running(file, "--processes", "2") as process:
        wait_for_steps(tmp_path / "run", 6)
        children = sorted(
            (child for child in psutil.Process(process.pid).children() if "train" in child.cmdline()),
            key=lambda child: child.environ()["RANK"],
        )
        children[dies].kill()
        began = time.monotonic()
        _, output = process.communicate(timeout=300)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    assert "Traceback" not in output
    assert f"clipkit: process {1 - dies}: another process of this run" in output
    assert f"clipkit: process {dies} was ended by SIGKILL" in output
    assert output.count("clipkit: ") == 2
    before = intact_checkpoints(tmp_path / "run")[-1]
    clipkit.train(recipe({**CHANGES, "train.epochs": before // 3 + 2}), resume=True)
    assert f"resuming after step {before}" in (tmp_path / "run" / "log.txt").read_text()


# A run with a limit for the size of each file, which gives the errors of a full disk.
LIMITED = """
import resource, sys
sys.dont_write_bytecode = True  # Python would leave a part of it in __pycache__
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv[1:2] = []
from clipkit.cli import main
main()
"""


@pytest.mark.parametrize(
    ("limit", "changes"),
    [
        # 60 rows of metrics.jsonl exceed the limit; the shared memory of TokenStore, 10,000 bytes, does not.
        pytest.param(12_000, {"train.epochs": 20, "checkpoint.every_steps": 1000}, marks=pytest.mark.slow, id="log"),
        # From the second checkpoint on, the optimizer's file exceeds the limit.
        pytest.param(
            1_000_000, {"train.epochs": 4, "checkpoint.every_steps": 1}, marks=pytest.mark.slow, id="checkpoint"
        ),
    ],
)
def test_full_disk_gives_a_one_line_error_and_the_run_can_resume(
    recipe: Build, tmp_path: Path, limit: int, changes: dict[str, int]
) -> None:
    changes = {**CHANGES, **changes}
    file = write(recipe(changes), tmp_path / "r.yaml")
    # The output goes through pipes: the limit would apply to files that receive it, too.
    command = [sys.executable, "-c", LIMITED, str(limit), "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("clipkit: ")]
    assert len(lines) == 1, done.stderr
    assert str(tmp_path / "run") in lines[0]
    assert "File too large" in lines[0]
    assert "--resume" in lines[0]
    intact_checkpoints(tmp_path / "run")
    clipkit.train(recipe(changes), resume=True)
    clipkit.train(recipe({**changes, "output": str(tmp_path / "whole")}))
    same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("message", ["unable to resize file </torch_1_2>", "unable to open shared memory"])
def test_full_shared_memory_gives_a_one_line_error(
    recipe: Build, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(f"{message}: No space left on device (28)")

    # Loader workers need none; with a start method other than fork, the token store does.
    monkeypatch.setattr("clipkit.data.tokens.shared_zeros", full)
    with pytest.raises(TrainingError, match="No space left.*/dev/shm.*--resume"):
        clipkit.train(recipe(CHANGES))


def test_unwritable_log_stops_the_run_with_its_checkpoints(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.training import recorder

    append = recorder.append

    def read_only(file: Path, row: dict[str, Any]) -> None:
        if row["step"] == 6:
            raise OSError(30, "Read-only file system")
        append(file, row)

    monkeypatch.setattr(recorder, "append", read_only)
    with pytest.raises(TrainingError, match="run: .*Read-only file system.*--resume"):
        clipkit.train(recipe(CHANGES))
    assert intact_checkpoints(tmp_path / "run") == [4]
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 5


def test_death_of_a_loader_worker_inside_other_code_gives_a_one_line_error() -> None:
    def look_up() -> None:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise KeyError("a cache") from error

    with pytest.raises(TrainingError, match=r"step 3: a loader worker died .*pid 7"), failures_in_one_line(lambda: 3):
        look_up()
    with pytest.raises(ZeroDivisionError), failures_in_one_line():
        raise ZeroDivisionError


def test_death_of_a_loader_worker_is_reported_once() -> None:
    """Once reported, the signals of the workers that end next raise nothing."""

    def worker_ends(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGCHLD)
        return "image.jpg"

    def handler(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        error = pytest.raises(TrainingError, match=r"step 3: a loader worker died .*pid 7.*image\.jpg")
        with error, failures_in_one_line(lambda: 3, worker_ends):
            worker_ends()
        worker_ends()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_killed_loader_worker_gives_a_one_line_error(recipe: Build, tmp_path: Path) -> None:
    file = write(recipe({**CHANGES, "train.epochs": 3000, "data.workers": 2}), tmp_path / "r.yaml")
    with running(file) as process:
        wait_for_steps(tmp_path / "run", 6)
        psutil.Process(process.pid).children()[0].send_signal(signal.SIGKILL)
        _, output = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("clipkit: ")]
    assert len(lines) == 1
    assert "loader worker" in lines[0]
    assert "data.workers" in lines[0]
    assert intact_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("tower", ["ImageTower", "TextTower"])
def test_out_of_memory_halves_the_micro_batch(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: str
) -> None:
    """The first tower runs out of memory in its second forward pass, after the gather; the last in its first one."""
    changes = {**CHANGES, "train.epochs": 4, "train.batch_size": 8, "train.micro_batch_size": 8, "optim.name": "sgd"}
    clipkit.train(recipe({**changes, "train.micro_batch_size": 2, "output": str(tmp_path / "small")}))
    device = OutOfMemory(2, tower)
    monkeypatch.setattr(Tower, "forward", lambda self, inputs: device(self, inputs))
    result = clipkit.train(recipe(changes))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step 1: out of memory; the step is repeated with micro-batch size 4, not 8" in log
    assert "step 1: out of memory; the step is repeated with micro-batch size 2, not 4" in log
    assert result["settings"]["micro_batch_size"] == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "small" / "metrics.jsonl").read_text()
    device.rows = 0
    with pytest.raises(TrainingError, match="out of memory with 1 pair on each process.*train.gradient_checkpointing"):
        clipkit.train(recipe(changes), overwrite=True)


@pytest.mark.slow
def test_out_of_memory_on_one_process_halves_the_micro_batch_on_all(recipe: Build, tmp_path: Path) -> None:
    changes = {**CHANGES, "train.epochs": 2, "train.micro_batch_size": 3, "optim.name": "sgd", "optim.lr": 0.05}
    file = write(recipe(changes), tmp_path / "r.yaml")
    output, _ = together(2, second_runs_out.__file__, str(file))
    assert output.count("step 1: out of memory; the step is repeated with micro-batch size 1, not 3") == 1
    clipkit.train(recipe({**changes, "train.micro_batch_size": 5, "output": str(tmp_path / "whole")}))
    for one, two in zip(
        read_lines(tmp_path / "run" / "metrics.jsonl"), read_lines(tmp_path / "whole" / "metrics.jsonl"), strict=True
    ):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_out_of_memory_with_trainable_batch_norm_stops_the_run(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.test_run import COMPOSED

    image = {**COMPOSED["image"], "name": "timm:test_resnet"}
    device = OutOfMemory(2, "TextTower")
    monkeypatch.setattr(Tower, "forward", lambda self, inputs: device(self, inputs))
    with pytest.raises(TrainingError, match="out of memory with 5 pairs.*BatchNorm"):
        clipkit.train(recipe({**CHANGES, "model": {**COMPOSED, "image": image}, "train.micro_batch_size": 5}))


def test_error_on_the_main_process_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls `on_main` as another process; with real ones, it refuses a folder that already holds a run."""
    processes = Processes(Accelerator(cpu=True))
    processes.index = 1
    for code, kind in ((1, clipkit.errors.UserError), (2, TrainingError)):
        monkeypatch.setattr(processes, "of_main", lambda value, code=code: code)
        with pytest.raises(kind, match="process"):
            processes.on_main(lambda: None)


def test_train_refuses_a_folder_with_files_that_are_not_of_a_run(recipe: Build, tmp_path: Path) -> None:
    """For example `output: .` in a project with a folder called checkpoints."""
    mine = tmp_path / "run" / "checkpoints" / "epoch_9.pt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match="contains checkpoints, but .*clipkit-run"):
            clipkit.train(recipe(CHANGES), **options)
    assert mine.read_text() == "mine"


def test_overwrite_keeps_the_old_run_if_the_new_one_is_refused(recipe: Build, tmp_path: Path) -> None:
    from tests.training.folder.test_resume import files_of, small_data

    changes = {**CHANGES, "train.epochs": 2, "checkpoint.every_steps": 4}
    clipkit.train(recipe(changes))
    before = files_of(tmp_path / "run")
    data = small_data(tmp_path / "data")
    (tmp_path / "data" / "images" / "3.png").write_bytes(b"no image")
    frozen = {"model.image.tune": "frozen", "data.augment": "none", "data.train": str(data), "train.batch_size": 4}
    with pytest.raises(DataError, match="1 of 8 images .*3.png.*data.max_bad allows 0"):
        clipkit.train(recipe({**changes, **frozen, "data.max_bad": 0}), overwrite=True)
    assert files_of(tmp_path / "run") == before


def test_overwrite_clears_a_linked_checkpoint_folder(recipe: Build, tmp_path: Path) -> None:
    elsewhere = tmp_path / "big disk"
    elsewhere.mkdir()
    clipkit.train(recipe({**CHANGES, "train.epochs": 4}))
    checkpoints = tmp_path / "run" / "checkpoints"
    for checkpoint in list(checkpoints.iterdir()):
        checkpoint.rename(elsewhere / checkpoint.name)
    checkpoints.rmdir()
    checkpoints.symlink_to(elsewhere)
    clipkit.train(recipe({**CHANGES, "train.epochs": 1, "checkpoint.every_steps": 1}), overwrite=True)
    assert checkpoint_steps(checkpoints) == [2, 3]


def test_resume_writes_a_report_that_could_not_be_written(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.training import outcome

    changes = {**CHANGES, "train.epochs": 2}
    with monkeypatch.context() as patched:

        def full(folder: Path) -> str:
            raise OSError(28, "No space left on device")

        patched.setattr(outcome, "run_report", full)
        with pytest.raises(TrainingError, match="No space left on device.*--resume"):
            clipkit.train(recipe(changes))
    clipkit.train(recipe(changes), resume=True)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("where", ["objective", "optimizer"])
def test_out_of_memory_outside_the_towers_stops_the_run(
    recipe: Build, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from clipkit.training import plan

    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "objective":
        original = plan.objective_of
        monkeypatch.setattr(plan, "objective_of", lambda *given: replace(original(*given), value=full))
        message = "out of memory with 1 pair on each process"
    else:
        monkeypatch.setattr(torch.optim.AdamW, "step", full)
        message = "after step 0: out of memory .CUDA out of memory.*train.micro_batch_size.*--resume"
    with pytest.raises(TrainingError, match=message):
        clipkit.train(recipe(CHANGES))


def test_batch_norm_is_restored_when_the_loss_is_not_finite(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.training.folder.checkpoint import checkpoint_of, read_tensors
    from tests.training.test_run import COMPOSED

    image = {**COMPOSED["image"], "name": "timm:test_resnet"}
    changes = {**CHANGES, "model": {**COMPOSED, "image": image}, "train.micro_batch_size": 5, "data.validation": None}
    forward, calls = Tower.forward, 0

    def nan_in_the_fourth(self: Tower, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        if type(self).__name__ == "ImageTower" and self.training is not None:
            calls += torch.is_grad_enabled()
            inputs = {name: value * (float("nan") if calls == 4 else 1) for name, value in inputs.items()}
        return forward(self, inputs)

    monkeypatch.setattr(Tower, "forward", nan_in_the_fourth)
    with pytest.raises(TrainingError, match="the loss is nan"):
        clipkit.train(recipe(changes))
    steps = checkpoint_steps(tmp_path / "run" / "checkpoints")
    tensors = read_tensors(checkpoint_of(tmp_path / "run" / "checkpoints", steps[-1]), "model")
    assert any("running_mean" in name for name in tensors)
    assert all(value.isfinite().all() for value in tensors.values())


def test_features_that_are_not_finite_stop_the_evaluation(recipe: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipkit.training.inputs import TowerInputs

    nan = torch.full((16, 8), float("nan"))
    monkeypatch.setattr(TowerInputs, "features", lambda self: (nan, nan.repeat(2, 1)))
    with pytest.raises(TrainingError, match="not finite"):
        clipkit.train(recipe(CHANGES))


@pytest.mark.slow
def test_checkpoints_by_time_with_several_processes(recipe: Build, tmp_path: Path) -> None:
    changes = {**CHANGES, "train.epochs": 40, "checkpoint.every_minutes": 0.02, "checkpoint.keep_last": 1000}
    file = write(recipe({**changes, "checkpoint.every_steps": 1000}), tmp_path / "r.yaml")
    together(2, "-m", "clipkit", "train", str(file))
    # 120 steps take seconds: there is a checkpoint every 1.2 seconds, not one after each step.
    assert len(intact_checkpoints(tmp_path / "run")) < 40


def test_run_continues_when_the_terminal_is_gone(recipe: Build, tmp_path: Path) -> None:
    file = write(recipe({**CHANGES, "train.epochs": 2}), tmp_path / "r.yaml")
    gone = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); from clipkit.cli import main; main()"
    done = python("-c", gone, "train", file)
    assert (tmp_path / "run" / "report.html").is_file(), done.stderr
