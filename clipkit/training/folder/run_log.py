"""What a run says: on the terminal at once, and in its folder once that is the run's."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

log = logging.getLogger("clipkit")


class RunLog:
    """Lines of the first process of a run.

    Args:
        speaks: whether this is the first process.
    """

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        # Passes each line on as soon as it knows where to.
        self._lines = MemoryHandler(1, flushLevel=logging.CRITICAL, flushOnClose=False)

    def say(self, message: str) -> None:
        """One line, by the first process."""
        if self.speaks:
            log.info(message)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, lines are kept for the file, and written to it from `write_to` on."""
        log.setLevel(logging.INFO)
        log.addHandler(self._lines)
        try:
            yield
        finally:
            log.removeHandler(self._lines)
            file = self._lines.target
            with suppress(OSError):  # on a full disk the run itself says what is wrong
                self._lines.close()
                if file is not None:
                    file.close()

    def write_to(self, path: Path) -> None:
        """Add what was said and will be said to this file.

        Raises:
            OSError: it cannot be opened.
        """
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        file.handleError = lambda record: None  # type: ignore[method-assign]
        self._lines.setTarget(file)
        self._lines.flush()
