"""Logs of computed features, with which `clipkit.embed` continues after an interruption."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
"""Length of a SHA-256, by which an image file or a text is identified."""
_HEAD = np.dtype([("magic", "<u4"), ("checksum", "<u4"), ("count", "<u4"), ("width", "<u4"), ("error", "<f4")])
_MAGIC = 0x70696C63


def text_key(text: str) -> bytes:
    """Return the key of a text: the SHA-256 of its UTF-8 bytes."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


class EncodedLog:
    """Append-only file of the features of images or texts, written by one process.

    A record contains keys (SHA-256), features in half precision and a checksum. If the process is killed, the last
    record may be incomplete. Readers ignore an incomplete record.

    Args:
        folder: folder of the logs.
        kind: "image" or "text".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._file = (folder / f"{kind}-{uuid4().hex}.log").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def add(self, keys: Sequence[bytes], features: NDArray[np.float32]) -> None:
        """Append the (K, D) features of K items to the file.

        After this call, the features are in the file even if the process is killed.
        """
        rounded = features.astype("<f2")
        error = np.abs(rounded.astype(np.float32) - features).max(initial=0.0)
        body = b"".join(keys) + rounded.tobytes()
        head = np.array([(_MAGIC, zlib.crc32(body), len(keys), features.shape[1], error)], _HEAD)
        self._file.write(head.tobytes() + body)
        self._file.flush()


class Encoded:
    """Features from all logs of a folder, by key (SHA-256 of an image file or a text).

    Args:
        folder: folder of the logs.
        kind: "image" or "text".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.rows: dict[bytes, tuple[int, int]] = {}
        """Number of the record and row in it, by key."""
        self.records: list[NDArray[np.float16]] = []
        self.error = 0.0
        """Maximum difference between a value in fp16 and in fp32."""
        for file in sorted(folder.glob(f"{kind}-*.log")):
            for keys, features, error in _records(file):
                for row, key in enumerate(keys):
                    self.rows.setdefault(key, (len(self.records), row))
                self.records.append(features)
                self.error = max(self.error, error)

    def __contains__(self, key: bytes) -> bool:
        return key in self.rows

    def __getitem__(self, key: bytes) -> NDArray[np.float16]:
        record, row = self.rows[key]
        return self.records[record][row]


def _records(file: Path) -> Iterator[tuple[list[bytes], NDArray[np.float16], float]]:
    """Yield the keys, the features, and the maximum rounding error (fp32 to fp16) of each complete record."""
    if file.stat().st_size < _HEAD.itemsize:
        return
    content = np.memmap(file, np.uint8, "r")
    start = 0
    while start + _HEAD.itemsize <= len(content):
        head = content[start : start + _HEAD.itemsize].view(_HEAD)[0]
        count, width = int(head["count"]), int(head["width"])
        begin = start + _HEAD.itemsize
        end = begin + count * (KEY_BYTES + 2 * width)
        if head["magic"] != _MAGIC or end > len(content) or zlib.crc32(content[begin:end].data) != head["checksum"]:
            return
        table = content[begin : begin + count * KEY_BYTES].tobytes()
        keys = [table[row * KEY_BYTES : (row + 1) * KEY_BYTES] for row in range(count)]
        yield keys, content[begin + count * KEY_BYTES : end].view("<f2").reshape(count, width), float(head["error"])
        start = end
