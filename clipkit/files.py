"""Writing files, and where."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$CLIPKIT_CACHE`, or `clipkit` in the user's cache folder. It may be deleted at any time."""
    own = os.environ.get("CLIPKIT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipkit"


def is_file(path: Path) -> bool:
    """Whether a file is there. A name that no file can have, as one that is too long, is the name of none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_whole(file: Path, text: str) -> None:
    """Write a file so that whoever looks finds the old one or the new one, never a part.

    What UTF-8 has no place for, as half of a surrogate pair in somebody's caption, is written as an escape.
    """
    aside = file.with_name(f".{file.name}.writing")
    with aside.open("w", encoding="utf-8", errors="backslashreplace") as writing:
        writing.write(text)
        writing.flush()
        os.fsync(writing.fileno())
    aside.replace(file)
