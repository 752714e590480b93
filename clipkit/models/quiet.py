"""Context managers for calls of other libraries: they hide progress bars and messages, and reword errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from clipkit.errors import ModelError, UserError, one_line


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """Hide transformers' progress bars and reports about weights; restore its settings afterwards."""
    from transformers.utils import logging as bars

    shown, level = bars.is_progress_bar_enabled(), bars.get_verbosity()
    bars.disable_progress_bar()
    bars.set_verbosity_error()  # clipkit reports problems with weights itself
    try:
        yield
    finally:
        bars.set_verbosity(level)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def without_root_messages() -> Iterator[None]:
    """Silence messages below ERROR of the root logger, which open_clip uses; restore the logger afterwards."""
    root = logging.getLogger()
    level, handler = root.level, logging.NullHandler()
    root.addHandler(handler)  # without a handler, the first message would install one for the whole process
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@contextmanager
def as_model_error(what: str, advice: str = "") -> Iterator[None]:
    """Turn an error of another library, which may have any type, into a ModelError of one line.

    Args:
        what: the part of the message before the library's reason, e.g. `model: cannot be read`.
        advice: the part of the message after the reason.

    Raises:
        ModelError: the block raised an error; a UserError is not changed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ModelError(f"{what} ({one_line(error)}){advice}") from None
