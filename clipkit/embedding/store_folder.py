"""Stores of a machine. The processes of a run build a store together, and verify an existing store before use.

A store contains outputs of frozen tower parts, which training reads in each epoch instead of computing them.
"""

import logging
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.embedding.cached import INDEX, hold, readable_size, remove, stored_inputs, stores_folder
from clipkit.embedding.store import DamagedError, PartWriter, Store, write_index
from clipkit.files import to_disk
from clipkit.processes import Processes

_UNFINISHED = ".writing"

_logger = logging.getLogger(__name__)

# Function that computes and writes rows of a store. Arguments: the writer, and the rows to compute. It returns for each
# of these rows its position in the part of the writer, or -1 if the item could not be read.
WriteShare = Callable[[PartWriter, slice], Int[Tensor, " R"]]


class NotStoredError(Exception):
    """Error: a store cannot be built. The message is the reason."""


@dataclass(frozen=True)
class Machine:
    """Processes of a run on the same machine as this process, with the same disk."""

    processes: Processes
    hosts: tuple[str, ...]
    """Host name of each process of the run."""

    @classmethod
    def of(cls, processes: Processes) -> "Machine":
        """Return the processes on this machine, found by host name. All processes of the run must call this method."""
        return cls(processes, tuple(processes.gather_objects(socket.gethostname())))

    @property
    def index(self) -> int:
        """Index of this process among the processes of the run on this machine."""
        return self.hosts[: self.processes.index].count(self.hosts[self.processes.index])

    @property
    def count(self) -> int:
        """Number of processes of this run on this machine."""
        return self.hosts.count(self.hosts[self.processes.index])

    def gather(self, value: Any) -> list[Any]:
        """Return `value` of each process on this machine. All processes of the run must call this method."""
        values = self.processes.gather_objects(value)
        return [one for one, host in zip(values, self.hosts, strict=True) if host == self.hosts[self.processes.index]]


class HeldStore(Store):
    """Open store. While this object exists, no process removes the folder of the store."""

    def __init__(self, folder: Path) -> None:
        self._held = hold(folder)
        super().__init__(folder)


def open_store(key: str, machine: Machine) -> HeldStore | None:
    """Open a store and verify its checksums; return None if it is missing or damaged on any machine of the run.

    A damaged store is reported and removed.

    Args:
        key: name of the store.
        machine: processes of this machine, each of which verifies some parts of the store.
    """
    folder = stores_folder() / key
    store, damaged = None, False
    if (folder / INDEX).exists():
        try:
            store = HeldStore(folder)
            store.verify(slice(machine.index, None, machine.count))
        except DamagedError:
            store, damaged = None, True
    missing, damaged = machine.processes.any(store is None, damaged)
    if damaged and machine.index == 0:
        _logger.warning("%s: stored inputs are damaged; they are computed again", folder)
        store = None
        remove(folder)
    return None if missing else store


def build_store(
    key: str, machine: Machine, rows: int, write: WriteShare, about: Mapping[str, Any], **options: Any
) -> HeldStore:
    """Build and open a store of tensors; each process of this machine writes a contiguous part of the rows.

    Args:
        key: name of the store.
        machine: processes that write.
        rows: number of rows.
        write: function that computes and writes the rows of this process.
        about: description of the content, saved in the index.
        options: `of_tokens` and `dtype` of `PartWriter`.

    Raises:
        NotStoredError: a process could not write its rows; all processes then raise it.
        UserError: `write` raised a UserError on any process; all processes then raise it.
    """
    folder, reason = stores_folder() / key, ""
    unfinished = folder.with_name(f".{key[:16]}.{machine.gather(uuid4().hex)[0]}{_UNFINISHED}")
    share = slice(machine.index * rows // machine.count, (machine.index + 1) * rows // machine.count)
    positions, part = torch.empty(0, dtype=torch.int64), {}
    try:
        with machine.processes.failing_together():
            try:
                unfinished.mkdir(parents=True, exist_ok=True)
                held = hold(unfinished)
                writer = PartWriter(unfinished, machine.index, **options)
                positions = write(writer, share)
                part = writer.close()
            except OSError as error:
                reason = f"{unfinished.parent} cannot be written to ({error.strerror})"
            except OverflowError:
                reason = "an activation is too large for fp16; set data.store.dtype: bf16 or fp32"
        reason = _agreed(machine, reason)
        parts = machine.gather((part, positions))
        if not machine.index and not reason:
            try:
                _complete(unfinished, folder, parts, {**about, "rows": rows}, options.get("of_tokens", False))
            except OSError as error:
                reason = f"{folder} cannot be written to ({error.strerror})"
        reason = _agreed(machine, reason)
    finally:
        if not machine.index:
            shutil.rmtree(unfinished, ignore_errors=True)
    if reason:
        raise NotStoredError(reason)
    store = HeldStore(folder)
    del held
    return store


def _agreed(machine: Machine, reason: str) -> str:
    return next(filter(None, machine.processes.gather_objects(reason)), "")


def _complete(unfinished: Path, folder: Path, parts: list[Any], about: Mapping[str, Any], of_tokens: bool) -> None:
    table = [
        torch.stack([torch.where(positions < 0, -1, number), positions], dim=1)
        for number, (_, positions) in enumerate(parts)
    ]
    write_index(unfinished, [part for part, _ in parts], torch.cat(table), of_tokens, about)
    for file in (*unfinished.iterdir(), unfinished):
        to_disk(file)
    with suppress(FileNotFoundError):
        remove(folder)  # an older store with the same name
    if not (folder / INDEX).exists():  # another run may just have built the same store
        unfinished.rename(folder)


def make_room(needed: int, budget: int, machine: Machine) -> str:
    """Remove the least recently used stores of this machine until a new store fits.

    Args:
        needed: bytes of the new store.
        budget: maximum bytes of all stores, including the new store.
        machine: processes of this machine; all of them return the same result.

    Returns:
        An empty string if the store fits; otherwise the reason, e.g. other runs use the stores.
    """
    reason = ""
    if machine.index == 0:
        stores_folder().mkdir(parents=True, exist_ok=True)
        total = sum(store.size for store in stored_inputs())
        for store in stored_inputs():
            if total + needed <= budget:
                break
            if remove(store.folder):
                total -= store.size
                _logger.info("%s: removed, because stored inputs may use at most data.store.disk", store.folder)
        free = shutil.disk_usage(stores_folder()).free
        if total + needed > budget:
            reason = (
                f"stored inputs that are in use take {readable_size(total)} of the {readable_size(budget)} "
                "that data.store.disk allows"
            )
        elif needed > 0.95 * free:
            reason = (
                f"{stores_folder()} has {readable_size(free)} free, which is too little for {readable_size(needed)}"
            )
    return _agreed(machine, reason)
