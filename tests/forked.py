"""Python processes for tests, forked from a server that has already imported what most of them need.

They start in milliseconds: imports took most of the time of the quick suite. A process runs and ends like
`python ARGUMENTS`; tests of the start itself, or of settings that libraries read on import, use `subprocess`.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import psutil
import torch

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
# Besides clipkit, what a run imports late: for the model, the tokenizer, tables and charts.
_FORKS.set_forkserver_preload(
    [
        __name__, "clipkit.cli", "clipkit.cli.tables", "clipkit.training", "clipkit.evaluation", "clipkit.report.run",
        "transformers.models.clip.modeling_clip", "timm", "pandas", "matplotlib.figure",
    ]
)  # fmt: skip


class Running:
    """The part of `subprocess.Popen` that tests use; the process leads its own session."""

    def __init__(self, arguments: Sequence[str | Path], environment: Mapping[str, str] = ENVIRONMENT) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self.stdout, self.stderr = folder / "out", folder / "err"
        parts = [str(argument) for argument in arguments]
        self._process = _FORKS.Process(target=_run, args=(parts, dict(environment), str(self.stdout), str(self.stderr)))
        with contextlib.chdir(_ROOT):  # the server imports this module once, from here
            forkserver.ensure_running()
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait until the process and all its descendants have ended, then return stdout and stderr."""
        end = time.monotonic() + timeout
        self._process.join(timeout)
        while self._process.exitcode is None or self._descendants():
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self._process.name, timeout, *self.output())
            time.sleep(0.05)
        return self.output()

    def _descendants(self) -> list[int]:
        """Return the processes of its session that are still alive."""
        alive = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    alive.append(pid)
        return alive

    def output(self) -> tuple[str, str]:
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in (self.stdout, self.stderr))
        return out, err

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()


def python(
    *arguments: str | Path, environment: Mapping[str, str] = ENVIRONMENT, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` and wait for it."""
    running = Running(arguments, environment)
    out, err = running.communicate(timeout)
    return subprocess.CompletedProcess(list(arguments), running.returncode or 0, out, err)


def together(
    processes: int, *arguments: str | Path, environment: Mapping[str, str] = ENVIRONMENT, code: int = 0
) -> tuple[str, str]:
    """Run `python ARGUMENTS` in a group of processes, like torchrun, until all exit with `code`; join their output."""
    port = free_port()
    started = [
        Running(arguments, {**environment, **rank_variables(rank, processes, port)}) for rank in range(processes)
    ]
    outputs = [running.communicate() for running in started]
    out, err = ("".join(parts) for parts in zip(*outputs, strict=True))
    assert [running.returncode for running in started] == [code] * processes, out + err
    return out, err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def rank_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun sets for a process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _run(arguments: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Run the arguments in the fork."""
    os.setsid()
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    gc.freeze()  # the objects of the server live as long as the process
    multiprocessing.set_start_method(None, force=True)  # its workers start by the default method
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        match arguments:
            case ["-m", module, *rest]:
                sys.argv = [module, *rest]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ["-c", code, *rest]:
                sys.argv = ["-c", *rest]
                exec(code, {"__name__": "__main__"})
            case [script, *rest]:
                sys.argv = [script, *rest]
                runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
