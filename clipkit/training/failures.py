"""Conversion of failures during training to one-line errors: a dead loader worker, or too little memory."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from clipkit.errors import TrainingError, lost_process, one_line
from clipkit.training.step import is_out_of_memory


@contextmanager
def failures_in_one_line(
    step: Callable[[], int] = lambda: 0, last_seen: Callable[[str], str] = lambda message: ""
) -> Iterator[None]:
    """Return a context that converts the death of a loader worker or a lack of memory to a TrainingError.

    Args:
        step: function that returns the number of completed steps, for the message.
        last_seen: function that returns the image that a worker was loading, or an empty string. Its argument is the
            error message about the worker.

    Raises:
        TrainingError: a worker died, memory or shared memory ran out, or another process of the run has ended.
    """
    try:
        yield
    except Exception as error:
        # PyTorch raises the error about a dead worker in whatever code is running; this code may convert it to another
        # error.
        death = next((one for one in _with_reasons(error) if str(one).startswith("DataLoader worker")), None)
        if death is not None:
            _report_no_more_deaths()
            image = last_seen(str(death))
            reason = (
                f"a loader worker died ({one_line(death)}){f' while it loaded {image}' if image else ''}; lower "
                "data.workers if the machine was out of memory"
            )
        elif isinstance(error, MemoryError):
            reason = "out of memory while images were read; lower data.workers or data.max_pixels"
        elif not isinstance(error, RuntimeError):
            raise
        elif isinstance(error, dist.DistError) or "gloo" in str(error):  # in a sharded trunk
            raise lost_process(error) from None
        elif is_out_of_memory(error):
            reason = f"out of memory ({one_line(error)}); set train.micro_batch_size to a smaller value"
        elif "shared memory" in str(error) or "</torch_" in str(error):
            reason = (
                f"shared memory is full or limited ({one_line(error)}); enlarge /dev/shm (docker run --shm-size) or "
                "the file size limit (ulimit -f)"
            )
        else:
            raise
        failure = TrainingError(f"after step {step()}: {reason}, then continue the run with --resume")
        failure.everywhere = False
        raise failure from None


def _report_no_more_deaths() -> None:
    """Reset the handler of SIGCHLD, so that PyTorch raises no further error when another worker dies.

    Loaders still report later deaths when a batch is requested.
    """
    while threading.current_thread() is threading.main_thread():
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # another worker ended before the reset
            continue
        return


def _with_reasons(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, followed by the chain of its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
