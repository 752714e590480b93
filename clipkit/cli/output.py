"""Output files of a command: checked before any work begins, and written at the end."""

from collections.abc import Sequence
from pathlib import Path

from clipkit.errors import OutputError
from clipkit.files import write_whole
from clipkit.overwriting import check_replaceable


def check_writable(*files: Path | None, inputs: Sequence[str | Path | None] = ()) -> None:
    """Check that all output files can be written without overwriting an input or each other.

    `files` contains None for each file that was not requested.

    Raises:
        OutputError: a file cannot be written, is given twice, or would replace a file that clipkit did not write.
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
    """Write a text file, and print `what` (e.g. "report") and the path; do nothing if `file` is None.

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
