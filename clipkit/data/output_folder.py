"""Output folders: a lock against simultaneous writing, and short messages for file system errors."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipkit.errors import OutputError


@contextmanager
def as_output_errors(out: Path) -> Iterator[None]:
    """Create a folder, and convert every OSError inside the `with` block to an OutputError.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written to ({error.strerror or error}); free some disk space, or give another "
            "folder with --out, then run the command again"
        ) from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder during the `with` block, so that no other process writes to the folder.

    A killed process releases the lock. There is no lock on Windows.

    Raises:
        OutputError: another process is writing to the folder.
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
            raise OutputError(
                f"{folder}: another process is writing to this folder; wait until that process has finished"
            ) from None
        # Any other error means that the file system does not support locks: continue without a lock.
    try:
        yield
    finally:
        os.close(descriptor)
