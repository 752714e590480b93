"""Opening of local data files, limited to regular files and to a maximum size.

Other paths, e.g. pipes and devices, can block forever. A sparse file can be larger than the memory.
"""

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnsuitableFileError(OSError):
    """Error for a path that is not a regular file, or for a too large file; `strerror` is the reason."""


def check_file(path: str | Path, most_bytes: int | None = None) -> None:
    """Check that a path is a regular file of at most `most_bytes` bytes, without opening it.

    Raises:
        UnsuitableFileError: the path is not a regular file, or the file is larger than `most_bytes`.
        OSError: the path cannot be accessed.
        ValueError: the name is not valid for a file.
    """
    _check(Path(path).stat(), path, most_bytes)


def open_file(path: str | Path, most_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading bytes.

    A file whose reported size is 0 counts as empty, because reading a pseudo file, e.g. in /proc, could block.

    Raises:
        UnsuitableFileError: the path is not a regular file, or the file is larger than `most_bytes`.
        OSError: the file cannot be opened.
        ValueError: the name is not valid for a file.
    """
    check_file(path, most_bytes)  # opening a device can already have effects
    # Check again after opening, because the file may have been replaced; do not wait for the writer of a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        _check(status, path, most_bytes)
    except OSError:
        os.close(descriptor)
        raise
    if status.st_size == 0:  # reading pseudo files such as /proc/kmsg would block
        os.close(descriptor)
        return io.BytesIO()
    return os.fdopen(descriptor, "rb")


def read_file(path: str | Path, most_bytes: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError, ValueError: as for `open_file`.
    """
    with open_file(path, most_bytes) as file:
        return file.read()


def open_text(path: str | Path, encoding: str = "utf-8-sig", newline: str | None = None) -> io.TextIOWrapper:
    """Open a regular file for reading text.

    Raises:
        OSError, ValueError: as for `open_file`.
    """
    return io.TextIOWrapper(open_file(path), encoding=encoding, newline=newline)


def read_text(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """Return the text of a regular file.

    Raises:
        OSError, ValueError: as for `open_file`.
        UnicodeDecodeError: the content does not have the given encoding.
    """
    with open_text(path, encoding) as file:
        return file.read()


def _check(status: os.stat_result, path: str | Path, most_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnsuitableFileError(errno.EINVAL, f"is {kind}, not a regular file", str(path))
    if most_bytes is not None and status.st_size > most_bytes:
        size = f"has {status.st_size:,} bytes, more than the limit of {most_bytes:,}"
        raise UnsuitableFileError(errno.EFBIG, size, str(path))
