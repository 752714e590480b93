"""`--processes N`: several processes on this machine, by torch's elastic launcher."""

import logging
import os
import signal
import sys
from uuid import uuid4

from clipkit.errors import UserError


def run_on_processes(count: int, arguments: list[str]) -> None:
    """Run `python -m clipkit ARGUMENTS` in `count` processes that know of each other; exit with their code.

    Raises:
        UserError: this is one of several processes already.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError("--processes was given under a launcher that starts processes itself; leave one of them out")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    # What a signal does, the run says.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        elastic_launch(config, sys.executable)("-m", "clipkit", *arguments)
    except ChildFailedError as error:
        # What went wrong was said by the process that failed; the launcher's own table adds nothing.
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            ended = signal.Signals(-failure.exitcode).name
            sys.stderr.write(f"clipkit: process {rank} was ended by {ended}; what was saved is whole\n")
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        # It was passed on to the processes, and they have ended.
        sys.exit(130 if error.sigval == signal.SIGINT else 143)


def run_again_on_processes(count: int) -> None:
    """Run the command that was typed in `count` processes; exit with their code."""
    arguments = []
    typed = iter(sys.argv[1:])
    for argument in typed:
        if argument == "--processes":
            next(typed, None)
        elif not argument.startswith("--processes="):
            arguments.append(argument)
    run_on_processes(count, arguments)
