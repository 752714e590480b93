"""A folder that data is written to: by one process at a time, and what goes wrong said as one line."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipkit.errors import OutputError


@contextmanager
def as_output_errors(out: Path) -> Iterator[None]:
    """Make the folder; within, the system's errors are OutputErrors.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written to ({error.strerror or error}); make room or give --out another folder, then "
            "give the same command again"
        ) from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, nobody else writes to the folder; the system lets go of it when a process is killed.

    Raises:
        OutputError: another process is at work in it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise OutputError(f"{folder}: is being written to by another process; wait for it") from None
        # A file system that knows no locks.
    try:
        yield
    finally:
        os.close(descriptor)
