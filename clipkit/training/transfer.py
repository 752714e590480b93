"""Transfer of batches to the device.

On a GPU, a thread copies the pixels of the next batch while the current batch is used. If two batches would use much of
the GPU's memory, pixels stay in CPU memory and are copied one micro-batch at a time. Tokens always stay in CPU memory,
so that their lengths are known without waiting for the GPU. In all cases, `MicroBatches` returns micro-batches on the
device. On a CPU, batches are not copied.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data import Batch
from clipkit.data.batch import BatchMemory
from clipkit.data.shared_memory import available_memory
from clipkit.data.slots import empty
from clipkit.models.preprocess import channels_last

Inputs = dict[str, Tensor]

# Number of batches in memory: one is used while the next one arrives.
_BATCHES = 2
# Pixels of these batches are kept on the device if they use less than this share of its memory.
_DEVICE_SHARE = 16
# Pixels of a batch are kept in pinned memory if they use less than this share of the available memory.
_PINNED_SHARE = 2
# Seconds that a run waits for its thread at the end: enough for a chunk in progress, but not for a slow network.
_PATIENCE = 10.0


class Closed(Exception):
    """Exception for access to a closed `PixelMemory`."""


class PixelMemory(BatchMemory):
    """Memory for the pixels of two batches, which are used in turn.

    Pixels reach a GPU through pinned memory, in chunks.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batches: list[dict[tuple[str, str], Tensor]] = [{} for _ in range(_BATCHES)]
        self._turn = 0
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(_BATCHES):
            self._free.put(None)
        self._closed = False
        self._pinned: list[Tensor] = []
        self._staging: dict[tuple[torch.Size, torch.dtype], deque[tuple[Tensor, Any]]] = {}

    def begin(self) -> None:
        used = self._free.get()
        self._check()
        self._turn = (self._turn + 1) % _BATCHES
        if used is not None:
            used.synchronize()

    def release(self) -> None:
        """Allow the next batch to overwrite the oldest batch.

        The next batch first waits until the GPU has finished the work that this thread has queued so far.
        """
        if self.stream is None:
            self._free.put(None)
            return
        done = torch.cuda.Event(blocking=True)
        done.record(torch.cuda.current_stream(self.device))
        self._free.put(done)

    def empty(self, key: tuple[str, str], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        kept = self._batches[self._turn]
        if key not in kept or kept[key].shape != shape or kept[key].dtype != dtype:
            kept[key] = self._new(shape, dtype)
        return kept[key]

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._check()
        if self.stream is None or target.is_cpu:
            _copy_bytes(target, source)
            return
        staging = self._staging.setdefault((source.shape, source.dtype), deque())
        if len(staging) < 2:
            pinned = empty(tuple(source.shape), source.dtype, pin_memory=True)
        else:
            pinned, sent = staging.popleft()
            sent.synchronize()
        _copy_bytes(pinned, source)
        with torch.cuda.stream(self.stream):
            target.copy_(pinned, non_blocking=True)
        staging.append((pinned, self.stream.record_event()))

    def end(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()
        self._check()

    def close(self) -> None:
        """End the thread that uses this memory: the next access of the thread raises `Closed`."""
        self._closed = True
        self._free.put(None)

    def free(self) -> None:
        """Free the memory; no thread may use it any more."""
        if self._pinned:
            with suppress(RuntimeError):  # the end of the work that was queued
                torch.cuda.synchronize(self.device)
            for tensor in self._pinned:
                torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
        for kept in (self._pinned, self._batches, self._staging):
            kept.clear()

    def _check(self) -> None:
        if self._closed:
            raise Closed

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.stream is None:
            return empty(shape, dtype)
        size = torch.Size(shape).numel() * dtype.itemsize
        if _BATCHES * size <= torch.cuda.mem_get_info(self.device)[1] // _DEVICE_SHARE:
            # Allocated for this stream: memory that was freed in another stream may still be in use there.
            with suppress(torch.OutOfMemoryError), torch.cuda.stream(self.stream):
                return empty(shape, dtype, device=self.device)
        room = available_memory() // _PINNED_SHARE
        tensor = empty(shape, dtype)
        if size <= room and _pin(tensor):
            self._pinned.append(tensor)
        elif 1 << (size - 1).bit_length() <= room:  # PyTorch rounds up to a power of two
            return empty(shape, dtype, pin_memory=True)
        return tensor


def pixel_memory(device: torch.device) -> PixelMemory | None:
    """Return the memory for batches on a GPU; None for other devices, to which batches are not copied ahead."""
    return PixelMemory(device) if device.type == "cuda" else None


def _copy_bytes(target: Tensor, source: Tensor) -> None:
    """Copy a tensor to another tensor of the same layout, in one thread."""
    # NumPy uses one thread. The threads of PyTorch would use the cores of the loader workers.
    one, two = (value.permute(0, 2, 3, 1) if value.ndim == 4 else value for value in (target, source))
    np.copyto(one.view(-1).view(torch.uint8).numpy(), two.reshape(-1).view(torch.uint8).numpy())


def _pin(tensor: Tensor) -> bool:
    """Pin the memory of a tensor for asynchronous copies to a GPU; return whether this succeeded."""
    if int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0:
        return True
    with suppress(RuntimeError):  # CUDA reports the failure again at the next kernel, so run one
        torch.zeros(1, device="cuda").add_(1)
    return False


def ahead(batches: Generator[Batch, None, None], memory: PixelMemory, in_thread: bool) -> Generator[Batch, None, None]:
    """Yield the batches of a loader; the next batch is loaded while the current one is used.

    The first batch is loaded in this thread, which starts the loader workers.

    Args:
        batches: batches of a loader that uses `memory`.
        memory: memory of two batches: each batch is valid until the next one is requested.
        in_thread: True to load further batches in a thread. It must be False if the loader has no workers, because
            augmentation in a thread could change the random state of this process at any time.
    """
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def load() -> None:
        try:
            with torch.cuda.device(memory.device) if memory.stream is not None else nullcontext():
                for batch in batches:
                    ready.put(batch)
            ready.put(None)
        except Closed:
            pass
        except BaseException as error:  # raise the error where the next batch is requested
            ready.put(error)

    thread = threading.Thread(target=load, name="clipkit-batches", daemon=True)
    try:
        batch = next(batches, None)
        if in_thread:
            thread.start()
        while batch is not None:
            yield batch
            memory.release()
            batch = ready.get() if in_thread else next(batches, None)
            if isinstance(batch, BaseException):
                raise batch
    finally:
        memory.close()
        if thread.ident is not None:
            thread.join(_PATIENCE)
        if not thread.is_alive():
            batches.close()
            memory.free()


def send(inputs: Mapping[str, Tensor], device: torch.device) -> Inputs:
    """Copy inputs to the device.

    Small inputs are copied from pinned memory, so that this thread does not wait.
    """
    return {
        name: (value.pin_memory() if value.is_cpu and value.ndim < 3 and device.type == "cuda" else value).to(
            device, non_blocking=True
        )
        for name, value in inputs.items()
    }


class MicroBatches:
    """Micro-batches of the inputs of a tower, on the device.

    Inputs in CPU memory are copied when their micro-batch is requested. The next micro-batch is copied while the
    current one is used.

    Args:
        inputs: inputs by name, on the device or in CPU memory.
        rows: the rows of each micro-batch: a slice (no copy) or an index tensor on the CPU.
        cut: function that is applied to the inputs of each micro-batch before they are copied to the device.
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        rows: Sequence[slice | Tensor],
        device: torch.device,
        cut: Callable[[Inputs], Inputs] = lambda inputs: inputs,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.device = device
        self.cut = cut
        self.is_local = all(value.device.type == device.type for value in inputs.values())
        self._under_way: dict[int, tuple[Inputs, Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, index: int, following: int | None = None) -> Inputs:
        """Return the inputs of a micro-batch, and begin to copy the inputs of the next one.

        Args:
            index: number of the micro-batch.
            following: number of the next micro-batch; None: there is none.
        """
        if self.is_local or self.device.type != "cuda":
            return channels_last(send(self._rows(index), self.device))
        inputs, sent = self._under_way.pop(index) if index in self._under_way else self._send(index)
        self._under_way.clear()
        if following is not None and 0 <= following < len(self.rows):
            self._under_way[following] = self._send(following)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(sent)
        for value in inputs.values():
            value.record_stream(stream)  # the memory is reused only after the work that is queued until then
        return channels_last(inputs)

    def _send(self, index: int) -> tuple[Inputs, Any]:
        stream = _copies(self.device)
        with torch.cuda.stream(stream):
            return send(self._rows(index), self.device), stream.record_event()

    def _rows(self, index: int) -> Inputs:
        rows = self.rows[index]
        taken = {
            name: value[rows if isinstance(rows, slice) else rows.to(value.device)]
            for name, value in self.inputs.items()
        }
        return self.cut(taken)


@cache
def _copies(device: torch.device) -> Any:
    """Return the CUDA stream for copies to the device."""
    return torch.cuda.Stream(device)
