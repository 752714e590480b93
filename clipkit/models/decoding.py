"""Decoding and preprocessing of images in advance, in threads or, for an accelerator, in processes."""

import math
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess

import torch
from PIL import Image, ImageFile
from torch import Tensor

from clipkit.errors import DataError, UserError
from clipkit.images import ImageLike, open_image
from clipkit.models.exact_pixels import pixel_table
from clipkit.models.preprocess import Inputs, Preprocess

MANY = 1000
"""Images for which it pays to start processes."""
_MOST_PROCESSES = 32
# Images that a process decodes at a time, limited by the bytes of their inputs.
_CHUNK = 32
_CHUNK_BYTES = 8 << 20
_AHEAD = 3  # chunks


@dataclass(frozen=True)
class DecodedBatch:
    """Inputs of a batch of images, and the errors of those that are unreadable, by position among all images."""

    inputs: dict[str, Tensor]
    errors: dict[int, DataError]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Decoder:
    """Converts images to inputs of a tower, by position.

    Args:
        preprocess: preprocessing of the tower.
        images: paths, stored files, PIL images or arrays.
        as_bytes: return pixels as bytes (H, W, 3), which `table` converts, if that gives exactly the same values.
    """

    def __init__(self, preprocess: Preprocess, images: Sequence[ImageLike], as_bytes: bool) -> None:
        self.preprocess = preprocess
        self.images = images
        self.table = pixel_table(preprocess) if as_bytes else None

    def __call__(self, position: int) -> Inputs | DataError:
        try:
            return self._inputs(open_image(self.images[position]))
        except DataError as error:
            return error

    def _inputs(self, image: Image.Image) -> Inputs:
        if self.table is None or self.preprocess.pixels is None:
            return self.preprocess(image)
        return {"pixel_values": torch.from_numpy(self.preprocess.pixels(image))}

    def blank(self) -> Inputs:
        """Return inputs that replace those of an unreadable image."""
        return self._inputs(Image.new("RGB", (224, 224)))


def decoded(decoder: Decoder, batch_size: int, fast: bool) -> Generator[DecodedBatch, None, None]:
    """Yield batches of all images, in order; close the generator to end its threads or processes.

    Args:
        decoder: converts the images.
        batch_size: images per batch.
        fast: decode many images in processes, because the device would wait for threads.
    """
    workers = _workers() if fast and len(decoder.images) >= MANY and _can_fork(decoder.images) else 0
    return in_processes(decoder, batch_size, workers) if workers > 1 else _in_threads(decoder, batch_size)


def stacked(images: Sequence[Inputs]) -> dict[str, Tensor]:
    """Stack the inputs of several images."""
    return {name: torch.stack([inputs[name] for inputs in images]) for name in images[0]}


def _workers() -> int:
    """Return the number of processes: one less than the cores of this process's share."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    return min(_MOST_PROCESSES, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _can_fork(images: Sequence[ImageLike]) -> bool:
    """Return whether processes can be forked safely and see the images.

    Opened files are not shared: each process would move the position in the file for all others.
    """
    return (
        sys.platform == "linux"
        and multiprocessing.get_start_method(allow_none=True) in (None, "fork")
        and not multiprocessing.current_process().daemon
        and threading.current_thread() is threading.main_thread()
        and not any(isinstance(image, ImageFile.ImageFile) for image in images)
    )


def _in_threads(decoder: Decoder, batch_size: int) -> Generator[DecodedBatch, None, None]:
    count = len(decoder.images)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(decoder, position) for position in batches[0]]
        for rows, following in zip(batches, [*batches[1:], range(0)], strict=True):
            ready, waiting = waiting, [pool.submit(decoder, position) for position in following]
            inputs, errors = [], {}
            for position, future in zip(rows, ready, strict=True):
                result = future.result()
                if isinstance(result, DataError):
                    errors[position], result = result, decoder.blank()
                inputs.append(result)
            yield DecodedBatch(stacked(inputs), errors)


def in_processes(decoder: Decoder, batch_size: int, workers: int) -> Generator[DecodedBatch, None, None]:
    """Yield batches that processes decode into shared memory.

    Raises:
        UserError: a process was killed.
    """
    blank = decoder.blank()
    chunk = max(1, min(_CHUNK, batch_size, _CHUNK_BYTES // sum(value.nbytes for value in blank.values())))
    count = len(decoder.images)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    chunks = [rows[start : start + chunk] for rows in batches for start in range(0, len(rows), chunk)]
    workers = min(workers, len(chunks))
    shape = (workers, _AHEAD, chunk)
    memory = {name: _shared(*shape, *value.shape, dtype=value.dtype) for name, value in blank.items()}
    context = multiprocessing.get_context("fork")
    links: list[Connection] = []
    processes: list[ForkProcess] = []
    try:
        for worker in range(workers):
            here, there = context.Pipe()
            links.append(here)
            slots = {name: value[worker] for name, value in memory.items()}
            processes.append(
                context.Process(target=_decode, args=(decoder, slots, chunks[worker::workers], there, links))
            )
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of fork beside threads
                processes[-1].start()
            there.close()
        index = 0
        for rows in batches:
            inputs = {name: _pinned(len(rows), *value.shape, dtype=value.dtype) for name, value in blank.items()}
            errors: dict[int, DataError] = {}
            filled = 0
            while filled < len(rows):
                worker, slot = index % workers, index // workers % _AHEAD
                result = links[worker].recv()
                if isinstance(result, Exception):
                    raise result
                errors |= result
                size = len(chunks[index])
                for name, value in memory.items():
                    inputs[name][filled : filled + size] = value[worker, slot, :size]
                if index + _AHEAD * workers < len(chunks):
                    links[worker].send(None)  # the slot is free
                filled += size
                index += 1
            yield DecodedBatch(inputs, errors)
    except (EOFError, ConnectionError):
        raise UserError(
            "a process that decodes images was killed, perhaps because there is not enough memory; encode again with "
            "more memory or fewer images at a time"
        ) from None
    finally:
        for link in links:
            link.close()  # ends its process
        for process in processes:
            if process.pid is not None:
                process.join()


def _shared(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return memory that forked processes share; it needs no name in /dev/shm, which is small in containers."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def _pinned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def _decode(
    decoder: Decoder, slots: dict[str, Tensor], chunks: list[range], link: Connection, inherited: list[Connection]
) -> None:
    """Decode chunks of images into slots of shared memory in turn, and send the errors of each; runs in a process."""
    for other in inherited:
        other.close()  # so that the end of the parent ends this process
    # Signals that stop a command often go to its whole group, but the parent acts on them.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        for index, rows in enumerate(chunks):
            if index >= _AHEAD:
                link.recv()  # the slot is free
            try:
                result: dict[int, DataError] | Exception = _fill(decoder, slots, index % _AHEAD, rows)
            except Exception as error:
                result = error
            link.send(result)


def _fill(decoder: Decoder, slots: dict[str, Tensor], slot: int, rows: range) -> dict[int, DataError]:
    errors = {}
    for row, position in enumerate(rows):
        inputs = decoder(position)
        if isinstance(inputs, DataError):
            errors[position], inputs = inputs, decoder.blank()
        for name, value in inputs.items():
            slots[name][slot, row] = value
    return errors
