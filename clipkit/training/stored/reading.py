"""Reading of stored inputs one batch ahead, so that a run does not wait for the disk."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(batches: Iterable[T], complete: Callable[[T], T], in_thread: bool) -> Generator[T, None, None]:
    """Complete each batch in a thread while the caller uses the previous batch, and yield the completed batches.

    Args:
        batches: batches of a loader.
        complete: function that returns a batch with the stored inputs added.
        in_thread: False to use no thread, for loaders whose batch is valid only until the next batch is requested.

    Example:
        >>> list(one_ahead([1, 2, 3], lambda batch: 10 * batch, in_thread=True))
        [10, 20, 30]
    """
    if not in_thread:
        yield from map(complete, batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="clipkit-stored") as pool:
        waiting: Future[T] | None = None
        for batch in batches:
            following = pool.submit(complete, batch)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
