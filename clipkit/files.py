"""Safe writing of files, and the location of the cache folder."""

import os
from pathlib import Path


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


def write_whole(file: Path, text: str) -> None:
    """Replace a file atomically: readers see either the complete old content or the complete new content.

    Characters that UTF-8 cannot represent, e.g. half of a surrogate pair in a caption, are written as escapes.
    """
    temporary = file.with_name(f".{file.name}.writing")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as writing:
        writing.write(text)
        writing.flush()
        os.fsync(writing.fileno())
    temporary.replace(file)
