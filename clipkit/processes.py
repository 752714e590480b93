"""Groups of processes: distribute rows, gather features, sum gradients, and raise errors on all processes."""

import atexit
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from clipkit.collectives import GatherRows, together
from clipkit.errors import TrainingError, UserError, one_line
from clipkit.launchers import refuse_shared_gpus, refuse_unsupported_launcher

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def accelerator_of(precision: str = "fp32", timeout_minutes: float = 10.0) -> "Accelerator":
    """Return an Accelerator that is connected to all processes of the launcher.

    Args:
        precision: auto, fp32, bf16 or fp16.
        timeout_minutes: time to wait for a process that does not respond.

    Raises:
        UserError: the launcher requests a setting that clipkit does not support, or two processes share a GPU.
        TrainingError: a process does not connect in time, or Accelerate connects only some of the processes.
    """
    refuse_unsupported_launcher(os.environ)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    AcceleratorState._reset_state()  # an earlier run in this Python process may have used another precision
    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        # With cpu=True, Accelerate joins the launcher's processes on a CPU; without it, each would run alone.
        accelerator = Accelerator(
            mixed_precision=_mixed_precision(precision),
            cpu=not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
    except (dist.DistError, ConnectionError, TimeoutError) as error:
        late = TrainingError(
            f"the {started} processes did not all connect within {timeout_minutes:g} minutes ({one_line(error)}); "
            "check that every process was started and can reach MASTER_ADDR, then start all processes again"
        )
        late.everywhere = False
        raise late from None
    if accelerator.num_processes != started:
        raise TrainingError(
            f"{started} processes were started, but Accelerate connected {accelerator.num_processes} of them; "
            "start the run with --processes N"
        )
    if started > 1:
        # If the group is still open when the interpreter exits, gloo's threads often abort the process.
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
        group = Processes(accelerator, timedelta(minutes=timeout_minutes))
        refuse_shared_gpus(group.gather_objects(_gpu_of(accelerator.device)))
    return accelerator


def _leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _gpu_of(device: torch.device) -> tuple[str, str]:
    """Return the name of this machine and the UUID of the GPU; on a CPU, the UUID is ""."""
    if device.type != "cuda":
        return socket.gethostname(), ""
    return socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)


def _mixed_precision(precision: str) -> str:
    if precision == "auto":
        if not torch.cuda.is_available():
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "no" if precision == "fp32" else precision


class Processes:
    """Group of one or more processes, with operations on values of all processes.

    The operations are exact, even if the processes have different numbers of rows.

    Args:
        accelerator: Accelerator that is connected to the processes; None: only this process, on the CPU.
        timeout: for runs on GPUs: maximum time that operations on CPU tensors wait for other processes. All other
            operations use the timeout that was given to `accelerator_of`.

    Example:
        >>> processes = Processes(None)
        >>> processes.share(10), processes.gather(torch.ones(10, 3), 10).shape
        (slice(0, 10, None), torch.Size([10, 3]))
    """

    def __init__(self, accelerator: "Accelerator | None", timeout: timedelta = timedelta(minutes=10)) -> None:
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.index = 0 if accelerator is None else accelerator.process_index
        self.device = torch.device("cpu") if accelerator is None else accelerator.device
        # Tensors on an accelerator use another group (NCCL), so that operations on the CPU (gloo) do not wait for
        # operations on the accelerator.
        self._cpu_group = _group_on_cpu(timeout) if self.count > 1 and self.device.type != "cpu" else None

    @classmethod
    def alone(cls) -> Self:
        """Return a group that consists of only this process and needs no communication."""
        return cls(None)

    @property
    def is_main(self) -> bool:
        """True if this process is the main process, which writes files and prints."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """Return the range of rows that this process handles, out of `total` rows."""
        return self._share_of(self.index, total)

    def _share_of(self, index: int, total: int) -> slice:
        return slice(index * total // self.count, (index + 1) * total // self.count)

    def gather(self, rows: Float[Tensor, "B D"], total: int) -> Float[Tensor, "G D"]:
        """Gather the rows of all processes, in rank order.

        In the backward pass, the gradients of a row are summed over all processes.

        Args:
            rows: the rows `share(total)` of this process.
            total: number of rows of all processes together.
        """
        if self.count == 1:
            return rows
        sizes = [self._share_of(index, total) for index in range(self.count)]
        return GatherRows.apply(rows, sizes, self.index, self._group_of(rows))

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, without gradient."""
        return self._reduced(value.detach().clone(), dist.ReduceOp.SUM)

    def _group_of(self, value: Tensor) -> dist.ProcessGroup | None:
        """Return the process group that communicates a tensor; None: the default group."""
        return self._cpu_group if value.device.type == "cpu" else None

    def _reduced(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Replace a tensor in place by a reduction over all processes, e.g. the sum, and return the tensor."""
        if self.count > 1:
            with together(value) as (lent,):
                dist.all_reduce(lent, op=operation, group=self._group_of(value))
        return value

    def start_sum(self, value: Tensor) -> Callable[[], None]:
        """Start to replace a tensor by its sum over all processes, and return a function that waits for the sum.

        All processes must start the same sums in the same order.
        """
        with together(value) as (lent,):
            work = dist.all_reduce(lent, group=self._group_of(value), async_op=True)

        def wait() -> None:
            with together():
                work.wait()

        return wait

    def smallest(self, value: int) -> int:
        """Return the minimum of the values of all processes."""
        if self.count == 1:
            return value
        return int(self._reduced(torch.tensor(value), dist.ReduceOp.MIN))

    def largest(self, value: int) -> int:
        """Return the maximum of the values of all processes."""
        return -self.smallest(-value)

    def any(self, *facts: bool) -> list[bool]:
        """Return for each boolean whether it is True on at least one process."""
        if self.count == 1:
            return list(facts)
        agreed = self._reduced(torch.tensor(facts, dtype=torch.int32), dist.ReduceOp.MAX)
        return [bool(fact) for fact in agreed.tolist()]

    def of_main(self, value: int) -> int:
        """Return the main process's value on all processes."""
        return int(self.rows_of_main(torch.tensor(value)))

    def gather_objects(self, value: T) -> list[T]:
        """Return the values (any picklable objects) of all processes in rank order."""
        if self.count == 1:
            return [value]
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.index] = len(data)
        lengths = self.sum(sizes).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        gathered = torch.empty(self.count * len(padded), dtype=torch.uint8)
        with together(gathered, padded) as (into, own):
            dist.all_gather_into_tensor(into, own, group=self._cpu_group)
        rows = zip(gathered.split(len(padded)), lengths, strict=True)
        return [pickle.loads(row[:length].numpy().tobytes()) for row, length in rows]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context that raises an error on all processes if a UserError is raised on any process.

        Raises:
            UserError: a process failed. The message comes from the lowest rank that failed.
        """
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        self.raise_together(failure)

    def raise_together(self, failure: UserError | None) -> None:
        """Raise an error on all processes if `failure` is not None on any process.

        Raises:
            UserError: a process has a failure. The message comes from the lowest rank with a failure.
        """
        if self.count == 1:
            if failure is not None:
                raise failure
            return
        first_failed = self.smallest(self.count if failure is None else self.index)
        if first_failed == self.count:
            return
        text = torch.zeros(2000, dtype=torch.uint8)
        if first_failed == self.index:
            message = str(failure).encode(errors="replace")[: len(text)]
            text[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        with together(text) as (lent,):
            dist.broadcast(lent, first_failed, group=self._cpu_group)
        raise UserError(bytes(text.tolist()).rstrip(b"\0").decode(errors="replace"))

    def rows_of_main(self, rows: Tensor) -> Tensor:
        """Return the main process's tensor on all processes; `rows` must have the same shape and dtype on all."""
        if self.count == 1:
            return rows
        agreed = rows.clone()
        with together(agreed) as (lent,):
            dist.broadcast(lent, 0, group=self._group_of(agreed))
        return agreed

    def on_main(self, work: Callable[[], None]) -> None:
        """Run `work` on the main process while the other processes wait.

        Raises:
            UserError, TrainingError: `work` raised this error. The other processes raise an error of the same class.
        """
        failure: UserError | TrainingError | None = None
        if self.is_main:
            try:
                work()
            except (UserError, TrainingError) as error:
                failure = error
        kinds = (None, UserError, TrainingError)
        kind = kinds[self.of_main(0 if failure is None else 1 if isinstance(failure, UserError) else 2)]
        if failure is not None:
            raise failure
        if kind is not None:
            raise kind("the main process failed")


_groups_on_cpu: dict[int, dist.ProcessGroup] = {}


def _group_on_cpu(timeout: timedelta) -> dist.ProcessGroup:
    """Return the gloo group of all processes. All processes must make the first call."""
    default = dist.group.WORLD
    if id(default) not in _groups_on_cpu:
        _groups_on_cpu.clear()  # remove groups of an earlier launch in this Python process
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup)  # the group contains every process
        _groups_on_cpu[id(default)] = group
    return _groups_on_cpu[id(default)]
