"""Errors with messages for users: in one line, what was given, what is wrong and what to do."""

import re

# Control characters could change a terminal's title or colors, or hide text; direction marks could reorder text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which is not a character and cannot be encoded."""
_CREDENTIALS = re.compile(r"://[^\s/]+@")


def printable(text: str) -> str:
    """Escape the control characters of a text, and remove user names and passwords from its URLs.

    Captions and file names may contain any character.

    Example:
        >>> printable("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), without_credentials(text))


def without_credentials(text: str) -> str:
    """Remove user names and passwords from the URLs in a text.

    Example:
        >>> without_credentials("https://me:secret@example.org/a.tar")
        'https://example.org/a.tar'
    """
    return _CREDENTIALS.sub("://", text)


def one_line(error: BaseException) -> str:
    """Return another library's error message as one line, or the type of the error if there is no message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class UserError(Exception):
    """Error for invalid input. The command line prints the message as one line and exits with code 2."""

    everywhere = True
    """True if every process of a run raises the error, so that only one needs to print it."""

    def __init__(self, message: str) -> None:
        super().__init__(_without_line_breaks(message))


class RecipeError(UserError):
    """Error for an invalid recipe or override."""


class DataError(UserError):
    """Error for data that is missing, empty or invalid."""


class ColumnError(DataError):
    """Error for a table that lacks a needed column."""


class UnreachedError(DataError):
    """Error for remote data that is unavailable, e.g. because there is no network."""


class ModelError(UserError):
    """Error for a model that is not found or cannot be loaded or built."""


class OutputError(UserError):
    """Error for an output that cannot be written, or that would overwrite other data."""


class TrainingError(Exception):
    """Error for a run that started and cannot continue. The command line exits with code 1."""

    everywhere = True
    """True if every process of a run raises the error, so that only one needs to print it."""

    def __init__(self, message: str) -> None:
        super().__init__(_without_line_breaks(message))


class BatchError(TrainingError):
    """Error for a batch for which the loss is undefined. All processes raise this error."""


class Interrupted(KeyboardInterrupt):
    """Exception that stops a run after a stop signal; `code` is the exit code: 130 after Ctrl+C, otherwise 143."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def check_text(text: str) -> None:
    """Check that a text has no lone surrogate (half of a character), which no tokenizer and no file accepts.

    Raises:
        DataError: the text has a lone surrogate.
    """
    if half := HALF.search(text):
        raise DataError(
            f"the text {text[:40]!r} contains half of a character ({half[0]!r} at position {half.start()}), "
            "usually because the text was read with a wrong encoding; fix the text"
        )


def _without_line_breaks(message: str) -> str:
    """Replace line breaks by spaces, and escape other control characters."""
    return printable(" ".join(message.splitlines()))


def lost_process(error: BaseException) -> TrainingError:
    """Return the error for a collective operation that failed because another process has ended."""
    lost = TrainingError(
        f"another process of this run has ended or does not respond ({one_line(error)}); saved files are complete: "
        "start all processes again, and add --resume for a training run"
    )
    lost.everywhere = False
    return lost
