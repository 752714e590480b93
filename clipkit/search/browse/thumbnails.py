"""Thumbnails of the images of an index. Each thumbnail is made once and stored in the folder of the index."""

import io
import logging
import sqlite3
import threading
from typing import Any

from clipkit.search.index import Index
from clipkit.search.source import CONTENT

log = logging.getLogger("clipkit")

FILE = "thumbnails.sqlite"
SIDE = 320
"""Longest side of a thumbnail, in pixels."""
_LARGE = 1600
_DECODED_AT_ONCE = 4


class Thumbnails:
    """Thumbnails and larger JPEGs of the images of an index, by row.

    Thumbnails are stored under the SHA-256 of the image file, so that they stay valid when the index changes. If the
    folder of the index is not writable, each request computes its thumbnail again.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._decoding = threading.Semaphore(_DECODED_AT_ONCE)
        self._stored: sqlite3.Connection | None = None
        try:
            self._stored = sqlite3.connect(index.path / FILE, check_same_thread=False, isolation_level=None, timeout=5)
            self._stored.execute("PRAGMA journal_mode = WAL")
            self._stored.execute("CREATE TABLE IF NOT EXISTS thumbnails (content TEXT PRIMARY KEY, jpeg BLOB)")
        except sqlite3.Error as error:
            self._stored = None
            log.warning(
                "%s: thumbnails cannot be stored (%s), so each start of clipkit browse makes them again; "
                "make the folder of the index writable",
                index.path / FILE,
                error,
            )

    def small(self, row: int) -> bytes:
        """Return the thumbnail of a row.

        Raises:
            DataError: the index has no such row, or its image is missing or unreadable.
        """
        content = self.index.rows[CONTENT][self.index.row_of(row)].as_py()
        stored = self._sql("SELECT jpeg FROM thumbnails WHERE content = ?", content)
        if stored:
            return bytes(stored[0][0])
        jpeg = self.jpeg(row, SIDE)
        self._sql("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", content, jpeg)
        return jpeg

    def large(self, row: int) -> bytes:
        """Return the image of a row as a JPEG of at most 1600 × 1600 pixels; errors as for `small`."""
        return self.jpeg(row, _LARGE)

    def jpeg(self, row: int, side: int) -> bytes:
        """Return the image of a row as a JPEG of at most `side` × `side` pixels; errors as for `small`."""
        with self._decoding:
            image = self.index.image(row)
            image.thumbnail((side, side))
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=82)
        return encoded.getvalue()

    def _sql(self, statement: str, *values: Any) -> list[Any]:
        if self._stored is None:
            return []
        try:
            with self._lock:
                return self._stored.execute(statement, values).fetchall()
        except sqlite3.Error:  # a full disk, or another process that writes
            return []

    def close(self) -> None:
        """Close the file that stores the thumbnails."""
        if self._stored is not None:
            self._stored.close()
