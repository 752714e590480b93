"""Forward passes of several batches at the same time on a CPU, with one batch per core.

A small operation does not keep several cores busy, and its threads compete with threads that decode images.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

from clipkit.models.devices import is_shard

B = TypeVar("B")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)

# More threads wait for Python's lock. Further cores share the operations of these threads.
_MOST_THREADS = 8
# Batches per thread that are computed before their results are used.
_AHEAD = 2


def threads_for(module: nn.Module, batches: int) -> int:
    """Return the number of threads with which `side_by_side` should run a number of batches.

    The number is 1 for few batches. It is also 1 for modules that FSDP2 distributes over processes, because all
    processes must run the batches in the same order.
    """
    several = min(_MOST_THREADS, torch.get_num_threads())
    has_shards = any(is_shard(parameter) for parameter in module.parameters())
    return 1 if has_shards or batches < 2 * several else several


def side_by_side(
    module: M, batches: Iterable[B], run: Callable[[M, B], R], threads: int, shared: Sequence[object] = ()
) -> Generator[R, None, None]:
    """Compute `run(module, batch)` for several batches at the same time, and yield the results in order.

    Each thread has a copy of the module, because a module may store intermediate values in its attributes. The copies
    share parameters and buffers.

    Args:
        module: module in evaluation mode.
        batches: the batches. The calling thread iterates over them.
        run: function that computes the result of a batch. It must enter inference mode and autocast itself, because
            these settings apply to one thread.
        threads: result of `threads_for`; 1: the calling thread runs the module.
        shared: parts of the module that are not copied, because all threads may use them at once.

    Example:
        >>> list(side_by_side(nn.Identity(), [1, 2, 3], lambda module, batch: module(10 * batch), threads=2))
        [10, 20, 30]
    """
    if threads == 1:
        yield from (run(module, batch) for batch in batches)
        return
    cores = torch.get_num_threads()
    copies = [_copy(module, shared) for _ in range(threads)]
    of_thread = threading.local()

    def begin() -> None:
        torch.set_num_threads(max(1, cores // threads))
        of_thread.module = copies.pop()

    def compute(batch: B) -> R:
        return run(of_thread.module, batch)

    pool = ThreadPoolExecutor(threads, "clipkit-batch", begin)
    waiting: deque[Future[R]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(compute, batch))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _copy(module: M, shared: Sequence[object]) -> M:
    kept = [*module.parameters(), *module.buffers(), *shared]
    return copy.deepcopy(module, {id(each): each for each in kept})
