"""Stop signals, on the command line and in Python."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import clipkit
from clipkit.errors import Interrupted
from clipkit.recipe import Recipe
from clipkit.training.stop import StopRequest
from tests.conftest import read_lines
from tests.forked import ENVIRONMENT, Running, free_port, rank_variables
from tests.training.test_kills import same_run

Build = Callable[..., Recipe]
CHANGES = {"train.epochs": 25, "train.batch_size": 5, "checkpoint.every_steps": 10_000, "eval.every_epochs": 1000}


@contextmanager
def running(file: Path, *arguments: str) -> Iterator[Running]:
    process = Running(["-m", "clipkit", "train", file, *arguments])
    try:
        yield process
    finally:
        process.kill()


def wait_for_steps(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 300
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < steps:
        assert time.monotonic() < deadline, f"the run does not reach step {steps}"
        time.sleep(0.01)


def write(recipe: Recipe, file: Path) -> Path:
    file.write_text(recipe.to_yaml())
    return file


@pytest.mark.parametrize(
    ("number", "code", "whole_group"),
    [
        pytest.param(signal.SIGTERM, 143, True, marks=pytest.mark.slow),
        (signal.SIGINT, 130, True),
        pytest.param(signal.SIGUSR1, 143, False, marks=pytest.mark.slow),
    ],
)
def test_signal_stops_the_run_with_a_checkpoint(
    recipe: Build, tmp_path: Path, number: signal.Signals, code: int, whole_group: bool
) -> None:
    file = write(recipe({**CHANGES, "data.workers": 1}), tmp_path / "r.yaml")
    with running(file) as process:
        wait_for_steps(tmp_path / "run", 4)
        # A terminal, or a scheduler, signals all processes of the group, and a launcher the run once more.
        (os.killpg if whole_group else os.kill)(process.pid, number)
        time.sleep(0.1)
        if process.poll() is None:
            process.send_signal(number)
        _, output = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert "Traceback" not in output
    step = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert f"clipkit: stopped by {number.name} after step {step}, " in output
    assert "--resume" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    if number == signal.SIGTERM:
        with running(file, "data.workers=1", "--resume") as process:
            assert process.communicate(timeout=300)
            assert process.returncode == 0
        with running(file, f"output={tmp_path / 'whole'}") as process:
            assert process.communicate(timeout=300)
            assert process.returncode == 0
        same_run(tmp_path / "run", tmp_path / "whole")


def test_a_signal_to_one_process_stops_all_after_the_same_step(recipe: Build, tmp_path: Path) -> None:
    file, port = write(recipe(CHANGES), tmp_path / "r.yaml"), free_port()
    group = [Running(["-m", "clipkit", "train", file], ENVIRONMENT | rank_variables(rank, 2, port)) for rank in (0, 1)]
    wait_for_steps(tmp_path / "run", 4)
    group[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[1] for process in group]
    assert [process.returncode for process in group] == [143, 143], outputs
    step = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert outputs[0].count(f"stopped by SIGTERM after step {step}, ") == 1, outputs


@pytest.mark.slow
@pytest.mark.parametrize("to_launcher", [True, False])
def test_launched_processes_stop_after_the_same_step(recipe: Build, tmp_path: Path, to_launcher: bool) -> None:
    file = write(recipe(CHANGES), tmp_path / "r.yaml")
    with running(file, "--processes", "2") as process:
        wait_for_steps(tmp_path / "run", 4)
        # Either the launcher passes the signal on, or one of the two processes alone receives it.
        children = [
            child
            for child in psutil.Process(process.pid).children()
            if "train" in child.cmdline() and child.is_running()
        ]
        assert len(children) == 2
        (process if to_launcher else children[1]).send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=300)
    assert process.returncode == 143, output
    step = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert output.count(f"stopped by SIGTERM after step {step}, ") == 1, output
    assert "clipkit: " in output


def test_second_ctrl_c_ends_the_process_at_once(recipe: Build, tmp_path: Path) -> None:
    # A step that never ends, in a micro-batch, where signals are only recorded.
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time, sys\n"
        "from clipkit.training import step\n"
        "real = step.Step.__call__\n"
        "def slow(self, batch, number):\n"
        "    while number >= 4: time.sleep(0.01)\n"
        "    return real(self, batch, number)\n"
        "step.Step.__call__ = slow\n"
        "from clipkit.cli import main\n"
        "main()\n"
    )
    file = write(recipe({**CHANGES, "checkpoint.every_steps": 2}), tmp_path / "r.yaml")
    process = Running([slow, "train", file])
    wait_for_steps(tmp_path / "run", 4)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)  # within a second: counts as the same
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "clipkit: interrupted twice" in output
    clipkit.train(recipe({**CHANGES, "checkpoint.every_steps": 2, "train.epochs": 3}), resume=True)
    assert "resuming after step 4" in (tmp_path / "run" / "log.txt").read_text()


def test_signal_in_python_raises_a_keyboard_interrupt(recipe: Build, tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for_steps(tmp_path / "run", 3)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT after step .*--resume") as caught:
        clipkit.train(recipe(CHANGES))
    assert isinstance(caught.value, Interrupted)
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run" / ".lock").exists()


def test_interrupted_evaluation_is_repeated_after_resume(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.training.measures.captions import CaptionValidation

    changes = {"train.epochs": 4, "checkpoint.every_steps": 100}
    clipkit.train(recipe({**changes, "output": str(tmp_path / "whole")}))
    with monkeypatch.context() as patched:
        figures, calls = CaptionValidation.figures, 0

        def interrupted_in_the_second(self: CaptionValidation) -> dict[str, float]:
            nonlocal calls
            calls += 1
            if calls == 2:
                signal.raise_signal(signal.SIGTERM)
            return figures(self)

        patched.setattr(CaptionValidation, "figures", interrupted_in_the_second)
        with pytest.raises(Interrupted, match="stopped by SIGTERM.*--resume"):
            clipkit.train(recipe(changes))
        assert calls == 2
    assert [row["step"] for row in read_lines(tmp_path / "run" / "evaluations.jsonl")] == [2]
    clipkit.train(recipe(changes), resume=True)
    assert "resuming after step 4" in (tmp_path / "run" / "log.txt").read_text()
    same_run(tmp_path / "run", tmp_path / "whole")


def test_stop_request_does_nothing_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def enter() -> None:
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [before]
