"""Log messages of a run, which are printed immediately and later also written to log.txt."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from clipkit.errors import printable

log = logging.getLogger("clipkit")


class RunLog:
    """Prints log messages on the main process, and writes them to log.txt.

    Args:
        enabled: True on the main process; other processes print nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        # Keeps the lines until the file is open.
        self._lines = MemoryHandler(1, flushLevel=logging.CRITICAL, flushOnClose=False)

    def info(self, message: str) -> None:
        """Log one line, on the main process."""
        if self.enabled:
            log.info(printable(message))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context in which nothing is logged, for a run that is a part of other work."""
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Return a context in which log lines are recorded.

        The lines are kept in memory until `write_to` opens log.txt, and are then written to this file.
        """
        log.setLevel(logging.INFO)
        log.addHandler(self._lines)
        try:
            yield
        finally:
            log.removeHandler(self._lines)
            file = self._lines.target
            with suppress(OSError):  # the run reports a full disk elsewhere
                self._lines.close()
                if file is not None:
                    file.close()

    def write_to(self, path: Path) -> None:
        """Append all recorded lines to a file, and from now on every new line.

        Raises:
            OSError: the file cannot be opened.
        """
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        file.handleError = lambda record: None  # type: ignore[method-assign]
        self._lines.setTarget(file)
        self._lines.flush()
