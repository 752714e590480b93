"""Multi-process commands: start the processes with torch's elastic launcher, or join those of another launcher."""

import logging
import os
import signal
import sys
import time
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from clipkit.errors import UserError

if TYPE_CHECKING:
    from clipkit.processes import Processes


def process_rank() -> int | None:
    """Return the rank that a launcher gave this process; None without a launcher."""
    return int(os.environ["RANK"]) if "RANK" in os.environ else None


def is_main_process() -> bool:
    """Return True if this process is the main process, which prints and writes files."""
    return not process_rank()


def end_with_launcher() -> None:
    """Start a thread that sends SIGTERM to this process if its launcher is killed.

    After SIGTERM, a run saves a checkpoint and ends. If this process is still alive after two minutes, it is killed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and hasattr(os, "getppid"):
        Thread(target=_watch, args=(os.getppid(),), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(120)
    os._exit(143)


def joined_processes() -> "Processes":
    """Return the group of all processes of the launcher; without a launcher, only this process."""
    from clipkit.processes import Processes, accelerator_of

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes.alone()
    return Processes(accelerator_of())


def _signals(config: Any) -> dict[str, Any]:
    """Return the option that makes torch's launcher end its processes after SIGUSR1, as after SIGTERM.

    If torch lacks this option, install a handler for SIGUSR1 and return an empty dict.
    """
    # Older versions of torch always forward SIGTERM, SIGINT, SIGHUP and SIGQUIT, but never SIGUSR1.
    if "signals_to_handle" in config.__dataclass_fields__:
        return {"signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    from torch.distributed.elastic.multiprocessing import SignalException

    def stop(number: int, frame: object) -> None:
        raise SignalException(f"{signal.Signals(number).name} was received", signal.Signals(number))

    signal.signal(signal.SIGUSR1, stop)
    return {}


def run_again_on_processes(count: int) -> NoReturn:
    """Run the current command line again in `count` processes, and exit with their exit code.

    Raises:
        UserError: a launcher started this process.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "--processes was given, but a launcher such as torchrun already started the processes; remove --processes"
        )
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    arguments = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument == "--processes":
            next(given, None)
        elif not argument.startswith("--processes="):
            arguments.append(argument)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **_signals(LaunchConfig),
    )
    # Each process has already printed that a signal stopped it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        elastic_launch(config, sys.executable)("-m", "clipkit", *arguments)
        sys.exit(0)
    except ChildFailedError as error:
        # The process that failed has reported the error; the launcher's table adds no information.
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            signal_name = signal.Signals(-failure.exitcode).name
            sys.stderr.write(f"clipkit: process {rank} was ended by {signal_name}; saved files are complete\n")
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        # The signal was passed on to the processes, and they have ended.
        sys.exit(130 if error.sigval == signal.SIGINT else 143)
