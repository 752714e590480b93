"""Context managers that hide progress bars and messages of other libraries, and convert their errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from clipkit.errors import ModelError, UserError, one_line


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """Hide transformers' progress bars and reports about weights, and restore its settings afterwards."""
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
    """Hide messages of the root logger below ERROR, which open_clip logs. Restore the logger afterwards."""
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
    """Convert any error of another library to a ModelError with a message of one line.

    Args:
        what: text before the library's reason in the message, e.g. `model: cannot be read`.
        advice: text after the reason, e.g. `; download it again`.

    Raises:
        ModelError: the code in the context raised an error. A UserError is not converted.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ModelError(f"{what} ({one_line(error)}){advice}") from None
