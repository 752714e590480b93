"""Decoding of images in forked processes, which write them to shared memory."""

import mmap
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipkit.errors import DataError, UserError
from clipkit.models.decoder import Decoded, DecodedBatch, Decoder, batches_of
from clipkit.models.preprocess import Inputs

_CHUNK = 16  # number of images that a process decodes at a time
_CHUNK_BYTES = 12 << 20  # bytes for the pixels of a chunk; the process resizes images that do not fit
_AHEAD = 3  # number of chunks in shared memory for each process

# Message of a process about a chunk: the sizes of the images, the number of bytes in the slot, and the errors.
_Answer = tuple[list[tuple[int, int] | None], int, dict[int, DataError]]


class NoProcessesError(Exception):
    """Error for decoding processes that cannot be started."""


def in_processes(
    decoder: Decoder, batch_size: int, workers: int, copied: Callable[[Tensor], Tensor]
) -> Generator[DecodedBatch, None, None]:
    """Yield batches of all images, which several processes decode.

    Args:
        decoder: decodes the images.
        batch_size: images per batch.
        workers: number of processes.
        copied: function that copies bytes to the device of the batches.

    Raises:
        NoProcessesError: there is not enough memory for processes, or there are too many processes already.
        UserError: a process was killed.
    """
    blank = decoder.blank().inputs
    least = _bytes_of(blank)
    chunk = max(1, min(_CHUNK, batch_size, _CHUNK_BYTES // least))
    capacity = _CHUNK_BYTES if decoder.as_pixels and least <= _CHUNK_BYTES else chunk * least
    batches = batches_of(len(decoder.images), batch_size)
    chunks = [rows[start : start + chunk] for rows in batches for start in range(0, len(rows), chunk)]
    workers = min(workers, len(chunks))
    context = multiprocessing.get_context("fork")
    links: list[Connection] = []
    processes: list[ForkProcess] = []
    try:
        try:
            # Forked processes inherit anonymous memory, which does not count as part of /dev/shm (small in containers).
            memory = torch.frombuffer(mmap.mmap(-1, workers * _AHEAD * capacity), dtype=torch.uint8)
            slots = memory.view(workers, _AHEAD, capacity)
            for worker in range(workers):
                here, there = context.Pipe()
                links.append(here)
                arguments = (decoder, slots[worker], chunks[worker::workers], there, links)
                process = context.Process(target=_decode, args=arguments)
                # Python warns about a fork in a process with threads.
                with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                    process.start()
                processes.append(process)
                there.close()
        except OSError as error:
            raise NoProcessesError from error
        index = 0
        for rows in batches:
            parts: list[Tensor] = []
            answers: list[_Answer] = []
            for _ in range(0, len(rows), chunk):
                worker = index % workers
                answer = links[worker].recv()
                if isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
                parts.append(copied(slots[worker, index // workers % _AHEAD, : answer[1]]))
                if index + _AHEAD * workers < len(chunks):
                    links[worker].send(None)  # the slot is free
                index += 1
            content = torch.cat(parts)
            yield DecodedBatch(
                {"content": content} if decoder.as_pixels else _split(content, blank),
                [size for sizes, _, _ in answers for size in sizes],
                {position: error for _, _, errors in answers for position, error in errors.items()},
            )
    except (EOFError, ConnectionError):
        raise UserError(
            "a process that decodes images was killed, perhaps because the memory is full; encode fewer images at a "
            "time, or use a machine with more memory"
        ) from None
    finally:
        for link in links:
            link.close()  # the process ends when its pipe is closed
        for process in processes:
            process.join()


def _split(content: UInt8[Tensor, " bytes"], one: Inputs) -> dict[str, Tensor]:
    """Convert the bytes of several images, one after another, to the tower's inputs by name.

    The inputs `one` of a single image determine names, types and shapes.
    """
    rows = content.view(-1, _bytes_of(one))
    parts = rows.split([value.nbytes for value in one.values()], dim=1)
    return {
        name: part.contiguous().view(value.dtype).view(-1, *value.shape)
        for part, (name, value) in zip(parts, one.items(), strict=True)
    }


def _bytes_of(inputs: Inputs) -> int:
    return sum(value.nbytes for value in inputs.values())


def _decode(
    decoder: Decoder, slots: UInt8[Tensor, "A B"], chunks: list[range], link: Connection, inherited: list[Connection]
) -> None:
    """Decode chunks of images into slots of shared memory. This is the main function of a process."""
    for other in inherited:
        other.close()  # close the parent's ends of the pipes, so that this process ends when the parent ends
    # Ignore signals that go to all processes of a command, e.g. Ctrl-C: the parent handles them.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    blank = decoder.blank()
    with suppress(EOFError, ConnectionError):
        for index, rows in enumerate(chunks):
            if index >= _AHEAD:
                link.recv()  # the slot is free
            try:
                answer: _Answer | Exception = _fill(decoder, slots[index % _AHEAD], rows, blank)
            except Exception as error:
                answer = error
            link.send(answer)


def _fill(decoder: Decoder, slot: UInt8[Tensor, " bytes"], rows: range, blank: Decoded) -> _Answer:
    """Decode a chunk of images, and write them to a slot of shared memory one after another.

    An image is resized first if its full size would leave too little room for the remaining images.
    """
    sizes: list[tuple[int, int] | None] = []
    errors: dict[int, DataError] = {}
    used, least = 0, _bytes_of(blank.inputs)
    for count, position in enumerate(rows, 1):
        image = decoder(position, len(slot) - used - least * (len(rows) - count))
        if isinstance(image, DataError):
            errors[position], image = image, blank
        sizes.append(image.size)
        for value in image.inputs.values():
            content = value.contiguous().flatten().view(torch.uint8)
            slot[used : used + len(content)] = content
            used += len(content)
    return sizes, used, errors
