"""Background computations over a whole index. Each one runs once, and its result stays in memory."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """Computation that starts when its result is requested for the first time.

    Args:
        compute: function that returns the result. Its argument is a function to call with the completed share (0 to 1)
            of the work.
    """

    def __init__(self, compute: Callable[[Callable[[float], None]], T]) -> None:
        self.progress = 0.0
        self._compute = compute
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._result: T | None = None
        self._error: Exception | None = None

    def result(self, wait: float = 0.3) -> T | None:
        """Return the result of the computation, or None if it is not finished after `wait` seconds.

        Raises:
            Exception: the computation failed with this error.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        self._thread.join(wait)
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._compute(self._report)
        except Exception as error:  # raised again by `result`
            self._error = error

    def _report(self, share: float) -> None:
        self.progress = share
