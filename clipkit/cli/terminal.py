"""Output of commands: escape characters that cannot be shown, and raise an error if writing fails."""

import errno
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from clipkit.errors import TrainingError, printable
from clipkit.findings import Finding

_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE)
_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")


class _Neutral:
    """Wrapper of standard output that escapes control characters and removes passwords from URLs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # Tables have colors only on a terminal.
        pieces = _STYLE.split(text) if self._stream.isatty() else [text]
        self._stream.write("".join(piece if _STYLE.fullmatch(piece) else printable(piece) for piece in pieces))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _MayBeFull:
    """Wrapper of standard error that ignores write errors, e.g. because the disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def whole_output() -> Iterator[None]:
    """Context in which printed control characters, and characters that the terminal cannot show, are escaped.

    Raises:
        TrainingError: standard output cannot be written, e.g. because the disk is full.
        SystemExit: the program that reads the output has ended, as in `clipkit … | head -1`. The exit code is 1.
    """
    if sys.stdout is None:  # the program that started this command closed it
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, _MayBeFull(sys.stderr))
    plain, sys.stdout = sys.stdout, cast(TextIO, _Neutral(sys.stdout))
    try:
        try:
            yield
        finally:
            sys.stdout = plain
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _LOST or (isinstance(error, BrokenPipeError) and _is_read()):
            raise
        # Python would write the rest of the buffer at exit and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        raise TrainingError(f"the output cannot be written ({error.strerror}); free some disk space") from None


def print_error(line: str) -> None:
    """Print a line on standard error; do nothing if standard error is closed."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"clipkit: {line}\n")
        sys.stderr.flush()


def print_findings(findings: Iterable[Finding]) -> None:
    """Print each finding as a line on standard error."""
    for finding in findings:
        print_error(finding.line())


def _is_read() -> bool:
    """Return whether a program still reads the pipe at standard output."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return not poll.poll(0)
