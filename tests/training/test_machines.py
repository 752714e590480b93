"""Several machines, as launchers on loopback: rendezvous, a lost machine that returns, and a slow machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

import clipkit
from clipkit.recipe import Recipe
from tests.conftest import read_lines
from tests.forked import ENVIRONMENT, free_port

pytestmark = pytest.mark.slow

Machines = list[subprocess.Popen[str]]
TORCHRUN = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
LAUNCHERS: dict[str, Callable[[str, str], list[str]]] = {
    "torchrun, static": lambda rank, port: [
        *TORCHRUN, "--master-addr", "127.0.0.1", "--master-port", port, "--node-rank", rank,
    ],
    "torchrun, c10d": lambda rank, port: [
        *TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run",
    ],
    "accelerate, static": lambda rank, port: [
        *ACCELERATE, "--main_process_ip", "127.0.0.1", "--main_process_port", port, "--machine_rank", rank,
    ],
    "accelerate, c10d": lambda rank, port: [
        *ACCELERATE, "--main_process_ip", "127.0.0.1", "--main_process_port", port, "--machine_rank", rank,
        "--rdzv_backend", "c10d",
    ],
}  # fmt: skip
STEPS = {"train.batch_size": 8, "optim.name": "sgd", "optim.lr": 1e-3, "eval.every_epochs": 1000}


@contextmanager
def machines(launcher: str, *arguments: str) -> Iterator[Machines]:
    """Start two machines with one process each; end whatever is left of them."""
    port = free_port()
    started: Machines = []
    try:
        for rank in range(2):
            command = [*LAUNCHERS[launcher](str(rank), str(port)), "-m", "clipkit", "train", *arguments]
            started.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
                    start_new_session=True,
                )
            )  # fmt: skip
            wait_for_port(port)  # Accelerate's first machine refuses a port that is in use
        yield started
    finally:
        for machine in started:
            for process in descendants(machine):
                process.kill()
            machine.kill()
            machine.wait()


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 200
    while True:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        assert time.monotonic() < end
        time.sleep(0.1)


def descendants(machine: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return psutil.Process(machine.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def outputs(started: Machines, timeout: float = 240) -> list[str]:
    return [machine.communicate(timeout=timeout)[0] for machine in started]


def wait_for_steps(run: Path, steps: int) -> None:
    end = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() or len(read_lines(run / "metrics.jsonl")) < steps:
        assert time.monotonic() < end
        time.sleep(0.1)


def assert_same_losses(one: Path, two: Path) -> None:
    losses = [torch.tensor([row["loss"] for row in read_lines(run / "metrics.jsonl")]) for run in (one, two)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_train_the_same_model(recipe: Callable[..., Recipe], tmp_path: Path, launcher: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(recipe({**STEPS, "train.epochs": 5}).to_yaml())
    with machines(launcher, str(file)) as started:
        printed = outputs(started)
        assert [machine.returncode for machine in started] == [0, 0], printed
    assert sum("2 processes on cpu joined by gloo" in text for text in printed) == 1
    clipkit.train(recipe({**STEPS, "train.epochs": 5, "output": str(tmp_path / "alone")}))
    assert_same_losses(tmp_path / "run", tmp_path / "alone")


def test_a_lost_machine_ends_the_run_which_resumes_when_it_returns(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    changes = {**STEPS, "train.timeout_minutes": 0.5, "checkpoint.every_steps": 10, "train.epochs": 60}
    file.write_text(recipe(changes).to_yaml())
    with machines("torchrun, static", str(file)) as started:
        wait_for_steps(tmp_path / "run", 12)
        for process in [*descendants(started[1]), psutil.Process(started[1].pid)]:
            process.send_signal(signal.SIGKILL)
        text = started[0].communicate(timeout=120)[0]
        assert started[0].returncode == 1
    lines = [line for line in text.splitlines() if "another process of this run" in line]
    assert len(lines) == 1, text
    assert "--resume" in lines[0]
    last = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert last < 120
    with machines("torchrun, static", str(file), "--resume") as started:
        printed = outputs(started)
        assert [machine.returncode for machine in started] == [0, 0], printed
    assert f"resuming after step {last}" in "".join(printed)
    clipkit.train(recipe({**changes, "output": str(tmp_path / "alone")}))
    assert_same_losses(tmp_path / "run", tmp_path / "alone")


def test_a_slow_machine_delays_the_run_and_changes_nothing(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(recipe({**STEPS, "train.epochs": 40}).to_yaml())
    with machines("torchrun, c10d", str(file)) as started:
        wait_for_steps(tmp_path / "run", 3)
        (process,) = [child for child in descendants(started[1]) if "clipkit" in " ".join(child.cmdline())]
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(process.pid, signal.SIGCONT)
        printed = outputs(started)
        assert [machine.returncode for machine in started] == [0, 0], printed
    clipkit.train(recipe({**STEPS, "train.epochs": 40, "output": str(tmp_path / "alone")}))
    assert_same_losses(tmp_path / "run", tmp_path / "alone")
