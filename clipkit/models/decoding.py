"""Decoding of images ahead of time, in processes for an accelerator and in threads otherwise."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import ImageFile
from torch import Tensor

from clipkit.images import ImageLike
from clipkit.models.decoder import DecodedBatch, Decoder, batches_of
from clipkit.models.decoding_processes import NoProcessesError, in_processes

MANY = 1000
"""Smallest number of images for which starting processes saves time."""
_MOST_PROCESSES = 32


def decoded(
    decoder: Decoder, batch_size: int, fast: bool, copied: Callable[[Tensor], Tensor]
) -> Generator[DecodedBatch, None, None]:
    """Yield batches of all images, in order. Close the generator to end its threads or processes.

    Args:
        decoder: decodes the images.
        batch_size: images per batch.
        fast: True if the device is faster than decoding in threads. Many images are then decoded in processes.
        copied: function that copies a tensor to the device of the batches.
    """
    workers = _workers() if fast and len(decoder.images) >= MANY and _can_fork(decoder.images) else 0
    if workers > 1:
        try:
            yield from in_processes(decoder, batch_size, workers, copied)
            return
        except NoProcessesError:
            pass
    yield from _in_threads(decoder, batch_size, copied)


def _workers() -> int:
    """Return the number of processes that decode images.

    In a distributed run, each training process uses an equal share of the CPU cores, and keeps one of them for itself.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    return min(_MOST_PROCESSES, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _can_fork(images: Sequence[ImageLike]) -> bool:
    """Return whether forked processes can decode these images.

    Images that PIL reads from an open file are excluded, because forked processes would share the file position.
    """
    return (
        sys.platform == "linux"
        and multiprocessing.get_start_method(allow_none=True) in (None, "fork")
        and not multiprocessing.current_process().daemon
        and threading.current_thread() is threading.main_thread()
        and not (isinstance(images, list | tuple) and any(isinstance(image, ImageFile.ImageFile) for image in images))
    )


def _in_threads(
    decoder: Decoder, batch_size: int, copied: Callable[[Tensor], Tensor]
) -> Generator[DecodedBatch, None, None]:
    batches = batches_of(len(decoder.images), batch_size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(decoder, position) for position in batches[0]]
        for rows, following in zip(batches, [*batches[1:], range(0)], strict=True):
            ready, waiting = waiting, [pool.submit(decoder, position) for position in following]
            batch = decoder.batch(rows, (future.result() for future in ready))
            yield replace(batch, inputs={name: copied(value) for name, value in batch.inputs.items()})
