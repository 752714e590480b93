"""What the command line sets for the process that it owns, and a library must not."""

import ctypes
import logging
import sys
from contextlib import suppress

from tqdm import tqdm

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def keep_freed_memory() -> None:
    """Let the C library reuse large blocks on a CPU instead of returning them to the system after each layer.

    Fetching them back costs a page fault for every 4 KB: an EfficientNet-Lite0 ran twice as many images a second
    without. Does nothing where the C library is not glibc, or the work is on a GPU.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):  # another C library
        return


def log_to_terminal(logger: logging.Logger) -> None:
    """Messages as plain lines above the progress bar."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # A terminal that is gone, or a file on a full disk, is no reason to end a run.
            with suppress(OSError):
                tqdm.write(self.format(record), file=sys.stdout)
                sys.stdout.flush()

    if not logger.handlers:
        logger.addHandler(Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False
