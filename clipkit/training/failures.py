"""Failures of a running process as one line: a dead loader worker, memory that runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clipkit.errors import TrainingError, one_line
from clipkit.training.step import out_of_memory


@contextmanager
def failures_in_one_line(
    step: Callable[[], int] = lambda: 0, last_seen: Callable[[str], str] = lambda message: ""
) -> Iterator[None]:
    """Turn a dead loader worker or a lack of memory into a TrainingError.

    Args:
        step: the step that the run has reached.
        last_seen: from the worker's message to the image that it was loading, if that is known.

    Raises:
        TrainingError: says what happened after which step, and how to continue.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if str(error).startswith("DataLoader worker"):
            seen = last_seen(str(error))
            reason = (
                f"a loader worker died ({one_line(error)}){f' at {seen}' if seen else ''}; the system ends "
                "processes when memory runs out: if it did, lower data.workers"
            )
        elif isinstance(error, MemoryError):
            reason = "out of memory while images are read; lower data.workers or data.max_pixels"
        elif out_of_memory(error):
            reason = f"out of memory ({one_line(error)}); set train.micro_batch_size to a smaller value"
        else:
            raise
        failed = TrainingError(f"after step {step()}: {reason}, then continue with --resume")
        failed.everywhere = False
        raise failed from None
