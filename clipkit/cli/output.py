"""Output files of a command: check that they can be written before any work begins, and write them at the end."""

from collections.abc import Sequence
from pathlib import Path

from clipkit.errors import OutputError
from clipkit.files import write_whole
from clipkit.overwriting import check_replaceable


def check_writable(*files: Path | None, inputs: Sequence[str | Path | None] = ()) -> None:
    """Check that all output files can be written without overwriting an input or each other.

    Args:
        files: files to write; None for a file that was not requested.
        inputs: sources that must not be overwritten.

    Raises:
        OutputError: a file cannot be written, is given twice, or would replace a file that is not an output of clipkit.
    """
    given = [source for source in inputs if source is not None]
    taken: dict[Path, Path] = {}
    for file in files:
        if file is None:
            continue
        check_replaceable(file, given)
        if file.resolve() in taken:
            raise OutputError(
                f"{file}: would overwrite {taken[file.resolve()]}, which this command also reads or writes; "
                "give another file"
            )
        taken[file.resolve()] = file


def write_output(file: Path | None, text: str, what: str) -> None:
    """Write a file and print its path; do nothing if `file` is None.

    Args:
        file: path of the file.
        text: content of the file.
        what: noun that is printed before the path, e.g. "report".

    Raises:
        OutputError: the file cannot be written.
    """
    if file is None:
        return
    write_file(file, text)
    print(f"{what}: {file}")


def write_file(file: Path, text: str | bytes) -> None:
    """Write a file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        write_whole(file, text)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}); give another file") from None
