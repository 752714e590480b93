"""Reading of a remote file in advance, in a thread, with a limit in bytes; a lost connection is opened again."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from clipkit.data.sources.remote import ATTEMPTS, BACK_OFF

BLOCK = 1 << 20
"""Bytes that are read at once."""
MOST = 1 << 25
"""Bytes that are read in advance of each file: 32 MiB."""


class ReadAhead:
    """Remote file that is read from front to back.

    A thread reads while the samples of earlier bytes are decoded. If the connection is lost, it opens the file again at
    the same byte. The delay doubles with each attempt in a row; after a limited number of attempts without data,
    reading fails.

    Args:
        opened: opens the file at its first byte.
        most: bytes that are read in advance, at least one block.
        reopened: called each time a lost connection has been opened again.

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
        self._blocks: deque[memoryview] = deque()  # cut without copying
        self._held = 0  # bytes in the blocks
        self._position = 0  # bytes that have been read from the file
        self._is_complete = self._is_closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._file = opened()  # here, so that a missing file is an error at once
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
            Exception: the error of the last attempt, of any type.
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
        """Move to byte `count`; a server without range requests sends the bytes before it again."""
        try:
            self._file.seek(count)
        except (OSError, ValueError):
            while count:
                skipped = len(self._file.read(min(count, BLOCK)))
                if not skipped:
                    raise EOFError("the file is shorter than before") from None
                count -= skipped
