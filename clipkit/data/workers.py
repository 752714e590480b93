"""Functions for loader workers: start, signal handling, and a record of the images that are being read."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info

from clipkit.data.shared_memory import shared_zeros


class WorkerProgress:
    """Record of the image that each loader worker is reading, for the error message when a worker dies.

    Args:
        images: all images of the data.
    """

    def __init__(self, images: Sequence[object]) -> None:
        self.images = images
        # One row per worker: process ID and position of the image.
        self._current = shared_zeros(os.cpu_count() or 1, 2).fill_(-1)

    def begin(self, image: int) -> None:
        """Record that this loader worker starts to read an image. In the main process, do nothing."""
        worker = get_worker_info()
        if worker is not None:
            self._current[worker.id] = torch.tensor([os.getpid(), image])

    def last_seen(self, reason: str) -> str:
        """Return the images that workers were reading when an error occurred, or "" if no image is known.

        Args:
            reason: error message. If it contains process IDs of workers, only their images are returned.
        """
        image_of = {process: image for process, image in self._current.tolist() if image >= 0}
        named = [image for process, image in image_of.items() if re.search(rf"\b{process}\b", reason)]
        return " or ".join(str(self.images[image]) for image in named or image_of.values())


@contextmanager
def lost_workers(loader: DataLoader[Any]) -> Iterator[None]:
    """Context manager that raises a RuntimeError instead of a connection error when a loader worker dies.

    Raises:
        RuntimeError: a worker died. The message starts with "DataLoader worker", as in torch.
    """
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not loader.num_workers or str(error).startswith("Caught "):  # error in a living worker, passed on by torch
            raise
        raise RuntimeError(f"DataLoader worker is gone: {str(error) or type(error).__name__}") from error


def start_worker(worker: int) -> None:
    """Prepare a loader worker. This is the `worker_init_fn` of a DataLoader."""
    # The threads of the tokenizer do not survive the fork, and a parallel call would wait for them forever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    info = get_worker_info()
    if info is not None and hasattr(info.dataset, "max_pixels"):
        Image.MAX_IMAGE_PIXELS = info.dataset.max_pixels
    if (asyn := sys.modules.get("fsspec.asyn")) is not None:
        asyn.reset_lock()  # its thread does not survive the fork either; fsspec before 2025.3.2 does not do this
    sys.excepthook = _report_unless_disconnected
    _leave_signals_to_run()


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, except a connection error, which only means that the run has ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _leave_signals_to_run() -> None:
    """Make this loader worker ignore signals that stop a run, because the current step still needs all workers."""
    signal.set_wakeup_fd(-1)  # otherwise the run would receive the signals of its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    # The run ends its workers with SIGTERM, so obey this signal only if the run sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    run = os.getppid()

    def exit_when_run_asks() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != run:
            pass
        os._exit(0)

    threading.Thread(target=exit_when_run_asks, daemon=True).start()
