"""Keys that identify images stored in a table: images with equal names and equal bytes have equal keys."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import pyarrow as pa

# Number of bytes compared at the beginning, in the middle and at the end; different images rarely agree in them.
_PART = 256


def content_keys(contents: Any, paths: Sequence[str]) -> pa.Array:
    """Return a key for each of R rows; rows with equal bytes and equal names have equal keys.

    Equal names are not enough, because names often lack the folder. Rows without bytes are compared by name only.

    Args:
        contents: (R,) column of bytes; null for an image that is not in the table.
        paths: (R,) path of each image; "" if unknown.

    Example:
        >>> contents = pa.array([b"1", b"2", b"1", b"1", None, None])
        >>> keys = content_keys(contents, ["a", "a", "a", "b", "c", "c"]).to_pylist()
        >>> keys[0] == keys[2], keys[0] == keys[1], keys[0] == keys[3], keys[4] == keys[5]
        (True, False, False, True)
    """
    samples = [(path, _sample(content)) for content, path in zip(_views(contents), paths, strict=True)]
    counts = Counter(samples)
    keys = []
    for row, (content, sample, path) in enumerate(zip(_views(contents), samples, paths, strict=True)):
        if content is None:
            keys.append(f"path {path}" if path else f"row {row}")
        else:
            # All bytes are hashed only if another image has the same name, size and bytes in three places.
            digest = hashlib.sha256(content).hexdigest() if counts[sample] > 1 else ""
            keys.append(f"content {digest} {path}" if digest else f"row {row}")
    return pa.array(keys, pa.large_string())


def _views(contents: Any) -> Iterator[memoryview | None]:
    """Yield the bytes of each row without a copy; None for a row without bytes."""
    are_bytes = pa.types.is_binary(contents.type) or pa.types.is_large_binary(contents.type)
    for chunk in contents.chunks if isinstance(contents, pa.ChunkedArray) else [contents]:
        for value in chunk:
            yield memoryview(value.as_buffer()) if value.is_valid and are_bytes else None


def _sample(content: memoryview | None) -> Hashable:
    if content is None:
        return None
    middle = len(content) // 2
    parts = (content[:_PART], content[middle : middle + _PART], content[-_PART:])
    return len(content), hashlib.blake2b(b"".join(parts), digest_size=16).digest()
