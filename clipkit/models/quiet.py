"""Without the bars and messages of other libraries for work that takes a moment."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """No bars or reports from transformers while it reads or writes weights; as before afterwards."""
    from transformers.utils import logging as bars

    shown, level = bars.is_progress_bar_enabled(), bars.get_verbosity()
    bars.disable_progress_bar()
    bars.set_verbosity_error()  # what is wrong with weights we say
    try:
        yield
    finally:
        bars.set_verbosity(level)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def without_root_messages() -> Iterator[None]:
    """Nothing below an error from who logs to the root, as open_clip does, and no handler left there by it."""
    root = logging.getLogger()
    level, nothing = root.level, logging.NullHandler()
    root.addHandler(nothing)  # with none, the first message would set one up for the whole process
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(nothing)
