"""Handling of signals, log messages and memory while a command trains."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from clipkit.cli.launch import is_main_process
from clipkit.cli.terminal import print_error
from clipkit.errors import Interrupted


@contextmanager
def running() -> Iterator[None]:
    """Context for training: if a signal stops the run, print one line and exit with the signal's code."""
    from clipkit.cli.process import keep_freed_memory, log_to_terminal

    log_to_terminal(logging.getLogger("clipkit"))
    keep_freed_memory()
    try:
        yield
    except Interrupted as error:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # a repeated signal must not change the exit code
        if is_main_process():
            print_error(str(error))
        sys.exit(error.code)
