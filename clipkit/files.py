"""Safe writing of files, and the location of the cache folder."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


def cache_folder() -> Path:
    """Return the cache folder: `$CLIPKIT_CACHE`, or `clipkit` in the user's cache folder.

    The user may delete it at any time.
    """
    chosen = os.environ.get("CLIPKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipkit"


def is_file(path: Path) -> bool:
    """Return True if the file exists, and False for invalid names too, e.g. names that are too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context that gives a temporary path for a new file or folder, and renames it to `path` at the end.

    `path` is always either complete and new, or unchanged. A full disk or an error leaves no other files; a killed
    process leaves at most a hidden file or folder whose name ends in .writing. A symbolic link is replaced, not
    followed. A new folder replaces only an empty folder.

    Raises:
        OSError: the file or folder cannot be written, also if a library such as safetensors reports this with its own
            type of error.

    Example:
        >>> with replacing(Path("numbers.txt")) as temporary:    # doctest: +SKIP
        ...     temporary.write_text("1 2 3")
    """
    # The name is random, so nothing exists there yet.
    temporary = path.absolute().with_name(f".{path.name[:40]}.{uuid4().hex}.writing")
    try:
        with as_os_errors():
            yield temporary
        if path.is_file() and not path.is_symlink():
            with suppress(OSError):
                shutil.copymode(path, temporary)
        for file in (*temporary.rglob("*"), temporary):
            to_disk(file)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_whole(file: Path, content: str | bytes) -> None:
    """Replace a file atomically: readers see either the complete old content or the complete new content.

    Characters that UTF-8 cannot represent, e.g. half of a surrogate pair in a caption, are written as escapes.
    """
    with replacing(file) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


@contextmanager
def as_os_errors(path: Path = Path()) -> Iterator[Path]:
    """Context that gives `path`, and converts system errors of Rust libraries (safetensors, tokenizers) to OSErrors."""
    try:
        yield path
    except Exception as error:
        number = None if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


@contextmanager
def sharing_files(folder: Path) -> Iterator[None]:
    """Context that gives files written in a folder at least the permissions of a new file (0o666 without the umask).

    Other libraries may write files that only their owner can read, e.g. safetensors 0.8. Files that were there before,
    and were not replaced, keep their permissions.
    """
    before = {file.stat().st_ino for file in folder.rglob("*") if is_file(file)}
    yield
    probe = folder / f".{uuid4().hex}.writing"
    probe.touch()
    usual = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if is_file(file) and not file.is_symlink() and file.stat().st_ino not in before:
            file.chmod(file.stat().st_mode | usual)


def to_disk(path: Path) -> None:
    """Flush the content of a file, or the list of the files in a folder, to the disk (fsync)."""
    if sys.platform == "win32":  # Windows flushes only files that are opened for writing.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Context that holds the lock of a file: only one process can hold it, other processes wait. Without effect on
    Windows.
    """
    with file.open("a") as opened:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX)  # released when the file is closed
        yield
