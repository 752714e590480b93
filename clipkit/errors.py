"""Errors with messages for users. Each message says in one line what was given, what is wrong and what to do."""

import re

HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: not text, and in no encoding."""


def one_line(error: BaseException) -> str:
    """Return the message of an error of another library as a single line; its type if it has no message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class UserError(Exception):
    """Invalid input. The command line prints the message as one line and exits with code 2."""

    everywhere = True
    """True if every process of a run raises the error, so that only one needs to print it."""

    def __init__(self, message: str) -> None:
        super().__init__(_without_line_breaks(message))


class RecipeError(UserError):
    """An invalid recipe or override."""


class DataError(UserError):
    """Data that is missing, empty or invalid."""


class ColumnError(DataError):
    """A table that lacks a needed column."""


class UnreachedError(DataError):
    """Remote data that is unavailable, e.g. because there is no network."""


class ModelError(UserError):
    """A model that is not found or cannot be loaded or built."""


class OutputError(UserError):
    """An output that cannot be written, or that would overwrite other data."""


class TrainingError(Exception):
    """A run that started and cannot continue. The command line exits with code 1."""

    everywhere = True
    """True if every process of a run raises the error, so that only one needs to print it."""

    def __init__(self, message: str) -> None:
        super().__init__(_without_line_breaks(message))


class BatchError(TrainingError):
    """A batch for which the loss is undefined; all processes raise this error, because all see the whole batch."""


class Interrupted(KeyboardInterrupt):
    """A run that stopped on request. The command line exits with `code`: 130 after Ctrl-C, 143 otherwise."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def check_text(text: str) -> None:
    """Check that a text has no lone surrogate, half of a character, which no tokenizer or file accepts.

    Raises:
        DataError: it has one.
    """
    if half := HALF.search(text):
        raise DataError(
            f"the text {text[:40]!r} contains half of a character ({half[0]!r} at position {half.start()}), as a wrong "
            "encoding leaves it; fix it"
        )


def _without_line_breaks(message: str) -> str:
    """Replace line breaks by spaces, and escape half characters, which names of files and columns may contain."""
    return " ".join(message.splitlines()).encode(errors="backslashreplace").decode()
