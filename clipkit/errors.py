"""What a user can get wrong. Every message says what was given, what is wrong and what to do, in one line."""


def one_line(error: BaseException) -> str:
    """What another library said, as a part of a one-line message."""
    return " ".join(str(error).split())[:200]


def _unbroken(message: str) -> str:
    """In one line, although a name of a file or a column may hold a line break."""
    return " ".join(message.splitlines())


class UserError(Exception):
    """Wrong input. The command line prints its message as one line and exits with code 2."""

    everywhere = True
    """Whether every process of a run finds it, so that one of them need say it."""

    def __init__(self, message: str) -> None:
        super().__init__(_unbroken(message))


class RecipeError(UserError):
    """A recipe or an override that cannot be used."""


class DataError(UserError):
    """Data that is missing, empty or broken."""


class UnreachedError(DataError):
    """Data that is elsewhere, and cannot be got from there now."""


class ModelError(UserError):
    """A model that cannot be found, opened or built."""


class OutputError(UserError):
    """A place that cannot be written to, or that holds something to keep."""


class TrainingError(Exception):
    """A run that started and cannot go on. The command line exits with code 1."""

    everywhere = True
    """Whether every process of a run finds it, so that one of them need say it."""

    def __init__(self, message: str) -> None:
        super().__init__(_unbroken(message))


class BatchError(TrainingError):
    """A batch for which a loss has no meaning; every process sees the whole of it."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and did. The command line exits with `code`: 130 after Ctrl-C, 143 otherwise."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
