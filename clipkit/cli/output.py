"""Writing the output files of a command, with checks before any work."""

from collections.abc import Sequence
from pathlib import Path

from clipkit.errors import OutputError
from clipkit.files import is_file, write_whole


def check_writable(*files: Path | None, inputs: Sequence[str | Path | None] = ()) -> None:
    """Check before any work that all files can be written, that none is an input, and that none is given twice.

    Args:
        files: files to write; None for a file that was not requested.
        inputs: sources that must not be overwritten.

    Raises:
        OutputError: a file cannot be written, or would replace an input or another file.
    """
    taken = {_path_of(str(source)).resolve(): source for source in inputs if source is not None}
    for file in files:
        if file is None:
            continue
        folder = file.absolute().parent
        if not folder.is_dir():
            raise OutputError(f"{file}: the folder {folder} does not exist; create it first")
        if file.is_dir():
            raise OutputError(f"{file}: is a folder; give the path of a file")
        if file.resolve() in taken:
            raise OutputError(
                f"{file}: would overwrite {taken[file.resolve()]}, which is also given; give another file"
            )
        taken[file.resolve()] = file


def _path_of(source: str) -> Path:
    """Return the path of a source without its options; a name that exists has none."""
    return Path(source) if is_file(Path(source)) else Path(source.partition("?")[0])


def write_output(file: Path | None, text: str, what: str) -> None:
    """Write a file and print its path after `what`, a short description; do nothing if the file is None.

    Raises:
        OutputError: the file cannot be written.
    """
    if file is None:
        return
    write_file(file, text)
    print(f"{what}: {file}")


def write_file(file: Path, text: str) -> None:
    """Write a text file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        write_whole(file, text)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}); give another file") from None
