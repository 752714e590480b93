"""Context managers that hide progress bars and messages of other libraries."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


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
    """Temporarily silence messages below ERROR of the root logger, which open_clip uses; then remove the handler."""
    root = logging.getLogger()
    level, handler = root.level, logging.NullHandler()
    root.addHandler(handler)  # without one, the first message would install a handler for the whole process
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
