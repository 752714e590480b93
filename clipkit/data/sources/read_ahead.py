"""Remote file that a thread reads in advance. The thread reconnects if the connection is lost."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from clipkit.data.sources.remote import ATTEMPTS, BACK_OFF

BLOCK = 1 << 20
"""Number of bytes per read."""
MOST = 1 << 25
"""Number of bytes of each file that are read in advance: 32 MiB."""


class ReadAhead:
    """Remote file that a thread reads in advance, from beginning to end.

    If the connection is lost, the thread opens the file again and continues at the same byte. The waiting time doubles
    with each attempt. After `ATTEMPTS` attempts without success, `read` raises the last error.

    Args:
        opened: function that opens the file and returns it.
        most: maximum number of bytes to read in advance, at least `BLOCK`.
        reopened: function that is called each time a lost connection has been opened again.

    Example:
        >>> import io
        >>> with ReadAhead(lambda: io.BytesIO(b"abcd")) as file:
        ...     file.read(3), file.read(3), file.read(3)
        (b'abc', b'd', b'')
    """

    def __init__(
        self, opened: Callable[[], Any], most: int = MOST, reopened: Callable[[], None] = lambda: None
    ) -> None:
        self._opened, self._most, self._reopened = opened, most, reopened
        self._blocks: deque[memoryview] = deque()  # views, which can be split without a copy
        self._held = 0  # bytes in the blocks
        self._position = 0  # bytes that have been read from the file
        self._is_complete = self._is_closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._file = opened()  # not in the thread, so that a missing file is an error at once
        threading.Thread(target=self._read_all, name="read ahead", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._blocks.clear()
            self._changed.notify_all()

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; b"" at the end of the file.

        Raises:
            Exception: the file cannot be read. This is the error of the last attempt, which can have any type.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._is_complete or self._failure is not None)
            if not self._blocks:
                if self._failure is not None:
                    raise self._failure
                return b""
            block = self._blocks.popleft()
            if len(block) > size:
                self._blocks.appendleft(block[size:])
            self._held -= len(block[:size])
            self._changed.notify_all()
            return bytes(block[:size])

    def _read_all(self) -> None:
        try:
            while block := self._next_block():
                with self._changed:
                    self._changed.wait_for(lambda: self._held + BLOCK <= self._most or self._is_closed)
                    if self._is_closed:
                        return
                    self._blocks.append(memoryview(block))
                    self._held += len(block)
                    self._changed.notify_all()
        except Exception as error:  # each protocol has its own errors
            self._failure = error
        finally:
            with suppress(Exception):
                self._file.close()
            with self._changed:
                self._is_complete = True
                self._changed.notify_all()

    def _next_block(self) -> bytes:
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    self._file = self._opened()
                    self._skip(self._position)
                    self._reopened()
                block = bytes(self._file.read(BLOCK))
                self._position += len(block)
                return block
            except (PermissionError, ImportError, ValueError):
                raise
            except Exception:
                if attempt == ATTEMPTS - 1 or self._is_closed:
                    raise
                with suppress(Exception):
                    self._file.close()
                time.sleep(BACK_OFF * 2**attempt)
        raise AssertionError("unreachable")

    def _skip(self, count: int) -> None:
        """Move to byte `count`. If the server cannot seek, read and discard all earlier bytes."""
        try:
            self._file.seek(count)
        except (OSError, ValueError):
            while count:
                skipped = len(self._file.read(min(count, BLOCK)))
                if not skipped:
                    raise EOFError("the file is shorter than before") from None
                count -= skipped
