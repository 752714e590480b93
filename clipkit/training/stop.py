"""Being asked to stop: signals, as a wish that the run looks at where it can stop without losing anything."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from clipkit.errors import Interrupted

# SIGUSR1 is what Slurm and others send some time before they end a job.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Launchers and terminals both deliver a Ctrl-C: what comes within this many seconds is the same one.
_SAME = 1.0


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGUSR1 ask for a stop instead of ending the process.

    Outside of `deferred` the first of them raises Interrupted where it arrives. Within, it only sets `asked`, and the
    run stops where nothing is lost. A second Ctrl-C, a second or more after the first signal, ends the process at once.

    In a thread other than the main one, where Python does not deliver signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._ends = socket.socketpair()
            self._ends[1].setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=_end_at_the_second_interrupt, args=(self._ends[0],), daemon=True).start()
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._ends[1].close()  # which ends the thread

    @contextmanager
    def deferred(self, deferred: bool = True) -> Iterator[None]:
        """Within, signals are only noted; `deferred(False)`, inside of it, is where they raise again."""
        before, self._deferred = self._deferred, deferred
        try:
            if self.asked is not None and not deferred:
                raise self.interrupted()
            yield
        finally:
            self._deferred = before

    def interrupted(self, where: str = "; what was saved is whole", number: int = 0) -> Interrupted:
        """The exception that ends the run, saying where it stood; `number` is the signal that all agreed on."""
        asked = signal.Signals(number or self.asked or signal.SIGTERM)
        return Interrupted(
            f"stopped by {asked.name}{where}; go on with --resume", 130 if asked == signal.SIGINT else 143
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signal.Signals(number)
            if not self._deferred:
                raise self.interrupted()


def _end_at_the_second_interrupt(signals: socket.socket) -> None:
    """In a thread of its own: the main one may be waiting where no handler of Python's runs."""
    first = None
    with signals:
        while received := signals.recv(64):
            now = time.monotonic()
            for number in received:
                if first is None and number in _SIGNALS:
                    first = now
                elif first is not None and number == signal.SIGINT and now - first >= _SAME:
                    os.write(2, b"clipkit: interrupted again: ended at once; the last checkpoint is whole\n")
                    os._exit(130)
