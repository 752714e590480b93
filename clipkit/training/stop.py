"""Stop signals: recorded when they arrive, and handled at points where the run can stop without losing work."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from clipkit.errors import Interrupted

# Slurm and others can send SIGUSR1 some time before they end a job.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A terminal and a launcher may both deliver one Ctrl-C: two signals within this number of seconds count as one.
_SAME_SECONDS = 1.0


class StopRequest:
    """Context in which SIGINT, SIGTERM and SIGUSR1 request a stop of the run instead of ending the process.

    Outside of `deferred`, the first signal raises Interrupted immediately. Inside `deferred`, the first signal only
    sets `signal`, and the run stops where no work is lost.

    A second Ctrl-C, at least a second after the first signal, ends the process at once. In an interactive session, such
    as a notebook, it raises Interrupted instead.

    Outside of the main thread, this context does nothing, because Python delivers signals only to the main thread.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that arrived."""
        self._deferred = False
        self._first = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._ends = socket.socketpair()
            self._ends[1].setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
            if not is_interactive():
                threading.Thread(target=_end_at_the_second_interrupt, args=(self._ends[0],), daemon=True).start()
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            for end in self._ends if is_interactive() else self._ends[1:]:
                end.close()  # which ends the thread

    @contextmanager
    def deferred(self, deferred: bool = True) -> Iterator[None]:
        """Return a context in which signals are only recorded.

        In `deferred(False)`, which may be nested in `deferred()`, signals raise Interrupted again.
        """
        before, self._deferred = self._deferred, deferred
        try:
            if self.signal is not None and not deferred:
                raise self.interrupted()
            yield
        finally:
            self._deferred = before

    def interrupted(self, when: str = "", number: int = 0) -> Interrupted:
        """Return the exception that ends the run.

        Args:
            when: when the run stopped, for the message, e.g. "before the first step".
            number: the signal that all processes agreed on; 0: the signal of this process.
        """
        first = signal.Signals(number or self.signal or signal.SIGTERM)
        message = f"stopped by {first.name}{f' {when}' if when else ''}; the saved files are complete: "
        return Interrupted(
            message + "continue with --resume (in Python: resume=True)", 130 if first == signal.SIGINT else 143
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            self._first = time.monotonic()
            if not self._deferred:
                raise self.interrupted()
        elif is_interactive() and number == signal.SIGINT and time.monotonic() - self._first >= _SAME_SECONDS:
            raise self.interrupted("again, within a step")


def is_interactive() -> bool:
    """Return whether this process is a Python prompt, IPython or a notebook, whose objects must survive a Ctrl-C."""
    return hasattr(sys, "ps1")


def _end_at_the_second_interrupt(signals: socket.socket) -> None:
    """End the process at the second Ctrl-C; runs in a separate thread.

    The main thread may be blocked in a call during which Python runs no signal handlers.
    """
    first = None
    with signals:
        while received := signals.recv(64):
            now = time.monotonic()
            for number in received:
                if first is None and number in _SIGNALS:
                    first = now
                elif first is not None and number == signal.SIGINT and now - first >= _SAME_SECONDS:
                    os.write(2, b"clipkit: interrupted twice, so the process ends now; continue with --resume\n")
                    os._exit(130)
