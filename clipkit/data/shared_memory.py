"""Memory shared with loader workers, also in containers with a small /dev/shm (64 MB or less)."""

import mmap
import multiprocessing
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_FOLDER = "/dev/shm"


def shared_zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return a tensor of zeros that loader workers can read and write.

    The operating system allocates a part of the memory only when this part is used.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if not _forks() or not count:
        return torch.zeros(shape, dtype=dtype).share_memory_()
    # Forked workers inherit anonymous pages, which do not count as part of /dev/shm.
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype).view(shape)


def fits_shared(size: int) -> bool:
    """Return whether a `shared_zeros` tensor of `size` bytes fits into shared memory."""
    return _forks() or size <= free_bytes()


def available_memory() -> int:
    """Return the available memory in bytes. A cgroup limit, e.g. of a container, is respected."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no cgroup of this version, or no limit ("max")
            continue
    return max(0, free)


def free_bytes() -> int:
    """Return the free bytes of /dev/shm, through which PyTorch passes tensors between processes.

    Without /dev/shm, return a very large number.
    """
    try:
        return shutil.disk_usage(_FOLDER).free
    except OSError:  # not Linux: there is no such limit
        return 1 << 62


def can_send_shared(size: int) -> bool:
    """Return whether all workers can pass a tensor of `size` bytes through /dev/shm at the same time."""
    worker = get_worker_info()
    if worker is None:
        return True
    processes = worker.num_workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 2 * processes * size <= free_bytes()


@dataclass(frozen=True)
class Packed:
    """Batch with NumPy arrays instead of tensors, to be sent through a pipe instead of shared memory."""

    batch: Any


def packed(batch: Any) -> Any:
    """Convert a batch to `Packed` if /dev/shm is too small for its tensors. Otherwise return the batch unchanged."""
    values = vars(batch)
    if can_send_shared(sum(_size(value) for value in values.values())):
        return batch
    return Packed(replace(batch, **{name: _arrays(value) for name, value in values.items()}))


def unpacked(batch: Any) -> Any:
    """Convert a `Packed` batch back to tensors. Return any other value unchanged."""
    if not isinstance(batch, Packed):
        return batch
    return replace(batch.batch, **{name: _tensors(value) for name, value in vars(batch.batch).items()})


def _forks() -> bool:
    # Without allow_none, this call would also fix the start method of the program.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork"


def _size(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_size, value.values())) if isinstance(value, Mapping) else 0


def _arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy() if value.dtype != torch.bfloat16 else value.view(torch.int16).numpy().view("V2")
    return {key: _arrays(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        plain = value.dtype != np.dtype("V2")
        return torch.from_numpy(value) if plain else torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return {key: _tensors(item) for key, item in value.items()} if isinstance(value, Mapping) else value
