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

    The user may delete this folder at any time.
    """
    chosen = os.environ.get("CLIPKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipkit"


def is_file(path: Path) -> bool:
    """Return whether a path is an existing file; False if the name is invalid, e.g. too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context for replacing a file or folder atomically: write to the temporary path that the context gives.

    At the end, the context renames the temporary file or folder to `path`. After an error, `path` is unchanged and the
    temporary file or folder is removed. A killed process can leave a temporary file, whose name ends in .writing. If
    `path` is a symbolic link, the link is replaced, not its target. A folder can replace only an empty folder.

    Raises:
        OSError: the file or folder cannot be written. System errors of libraries such as safetensors are converted.

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

    Characters that UTF-8 cannot represent, e.g. half of a surrogate pair, are written as escapes.
    """
    with replacing(file) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


@contextmanager
def as_os_errors(path: Path = Path()) -> Iterator[Path]:
    """Context that converts system errors of Rust libraries (safetensors, tokenizers) to OSError.

    The value of the context is `path`.
    """
    try:
        yield path
    except Exception as error:
        number = None if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


@contextmanager
def sharing_files(folder: Path) -> Iterator[None]:
    """Context that gives files created or replaced in a folder at least the default permissions, e.g. 0o644."""
    # Some libraries, e.g. safetensors 0.8, write files that only the owner can read.
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
    """Flush a file, or the list of the files in a folder, to the disk (fsync)."""
    if sys.platform == "win32":  # Windows flushes only files that are opened for writing.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Context that locks a file, so that other processes that lock the file wait. Does nothing on Windows."""
    with file.open("a") as opened:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX)  # released when the file is closed
        yield
