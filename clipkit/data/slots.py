"""Shared memory through which loader workers pass image inputs to the main process."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from clipkit.data.shared_memory import available_memory, fits_shared, shared_zeros

# Inputs by name of the features, then by name of the tower's argument, e.g. inputs["image"]["pixel_values"].
Inputs = dict[str, dict[str, Tensor]]

_PAGE = 4096
# The slots of all processes may use 1 / _SHARE of the available memory.
_SHARE = 8


@dataclass(frozen=True)
class Place:
    """Location of a tensor in the memory of `Slots`, sent by a loader worker instead of the tensor."""

    worker: int
    slot: int
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Slots:
    """Shared memory that is divided into slots. A slot holds the image inputs of one chunk (a part of a batch).

    A loader worker fills one of its free slots; the main process copies the content and frees the slot. If a worker has
    no free slot, its chunk is sent without a slot.

    Args:
        workers: number of loader workers.
        each: number of slots per worker.
        size: size of a slot in bytes, a multiple of 16.
    """

    def __init__(self, workers: int, each: int, size: int) -> None:
        self.size = size
        self._memory = shared_zeros(workers, each, size, dtype=torch.uint8)
        self._taken = shared_zeros(workers, each, dtype=torch.bool)

    def take(self) -> tuple[int, int] | None:
        """Reserve a free slot of this worker. Return (number of the worker, number of the slot).

        Return None in the main process, or if no slot is free.
        """
        worker = get_worker_info()
        if worker is None:
            return None
        free = (~self._taken[worker.id]).nonzero()
        if not len(free):
            return None
        slot = int(free[0])
        self._taken[worker.id, slot] = True
        return worker.id, slot

    def free_all(self) -> None:
        """Free all slots of this worker. Call this only if the main process no longer needs their content."""
        worker = get_worker_info()
        if worker is not None:
            self._taken[worker.id] = False

    def tensor(self, place: Place) -> Tensor:
        """Return the tensor at a location. A tensor with 4 dimensions (images) is in channels-last order."""
        values = self._memory[place.worker, place.slot, place.offset :]
        values = values[: math.prod(place.shape) * place.dtype.itemsize].view(place.dtype)
        if len(place.shape) != 4:
            return values.view(place.shape)
        rows, channels, height, width = place.shape
        return values.view(rows, height, width, channels).permute(0, 3, 1, 2)

    def opened(self, batch: Any) -> Any:
        """Return a worker's batch with each `Place` replaced by the tensor in shared memory.

        The tensors are valid until `free` is called.
        """
        if not _places(batch):
            return batch
        inputs = {
            name: {key: self.tensor(value) if isinstance(value, Place) else value for key, value in values.items()}
            for name, values in batch.inputs.items()
        }
        return replace(batch, inputs=inputs)

    def free(self, batch: Any) -> None:
        """Free the slot that a worker's batch uses."""
        for place in _places(batch):
            self._taken[place.worker, place.slot] = False


def slots_for(example: Inputs, rows: int, workers: int, ahead: int) -> tuple[Slots | None, int]:
    """Create slots for the chunks that workers prepare in advance. Return (slots, chunks per worker).

    The slots are None without workers, without images, or if there is too little memory.

    Args:
        example: the inputs of one image.
        rows: images in a chunk.
        workers: number of loader workers.
        ahead: desired number of chunks per worker. With too little memory, the number is reduced, but to at least 2.
    """
    size = rows * sum(_padded(value.nbytes) for values in example.values() for value in values.values())
    if not workers or not size:
        return None, min(ahead, 2)
    size = -(-size // _PAGE) * _PAGE
    most = available_memory() // _SHARE // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # One more: the main process copies a chunk after it has requested the next one.
    ahead = max(2, min(ahead, most // (workers * size) - 1))
    whole = workers * (ahead + 1) * size
    return (Slots(workers, ahead + 1, size) if whole <= most and fits_shared(whole) else None), ahead


class Stack:
    """Image inputs of a chunk (a part of a batch), with one row per image.

    Args:
        rows: images in the chunk.
        slots: shared memory for the inputs. If it is None or has no free slot, new memory is allocated.
    """

    def __init__(self, rows: int, slots: Slots | None = None) -> None:
        self.rows = rows
        self.slots = slots
        self._values: Inputs = {}
        self._sent: dict[str, dict[str, Any]] = {}

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the chunk by name. A tensor in shared memory is represented by its `Place`."""
        return self._sent

    def put(self, row: int, inputs: Inputs) -> None:
        """Copy the inputs of an image to a row of the chunk.

        Raises:
            ValueError: the shape of an input differs from that of earlier images.
        """
        if not self._values:
            self._allocate(inputs)
        for name, values in inputs.items():
            for key, value in values.items():
                target = self._values[name][key][row]
                if value.shape != target.shape:
                    raise ValueError(
                        f"{name}: {key} of an image has shape {tuple(value.shape)}, but "
                        f"that of an earlier image has shape {tuple(target.shape)}; make the shapes equal"
                    )
                target.copy_(value)

    def repeat(self, row: int, source: int) -> None:
        """Copy the inputs in the row `source` to the row `row`."""
        for values in self._values.values():
            for value in values.values():
                value[row].copy_(value[source])

    def _allocate(self, inputs: Inputs) -> None:
        needed = self.rows * sum(_padded(value.nbytes) for values in inputs.values() for value in values.values())
        slot = self.slots.take() if self.slots is not None and needed <= self.slots.size else None
        offset = 0
        for name, values in inputs.items():
            self._values[name], self._sent[name] = {}, {}
            for key, value in values.items():
                shape = (self.rows, *value.shape)
                if self.slots is None or slot is None:
                    self._values[name][key] = self._sent[name][key] = empty(shape, value.dtype)
                    continue
                place = Place(*slot, offset, shape, value.dtype)
                self._values[name][key], self._sent[name][key] = self.slots.tensor(place), place
                offset += self.rows * _padded(value.nbytes)


def empty(shape: tuple[int, ...], dtype: torch.dtype, **where: Any) -> Tensor:
    """Return an uninitialized tensor. A tensor with 4 dimensions (images) is in channels-last order."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout, **where)


def _padded(size: int) -> int:
    return -(-size // 16) * 16


def _places(batch: Any) -> list[Place]:
    inputs = getattr(batch, "inputs", {})
    return [value for values in inputs.values() for value in values.values() if isinstance(value, Place)]
