"""Without the bars of other libraries for work that takes a moment."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """No bars from transformers while it reads or writes weights; as before afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
