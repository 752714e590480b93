"""Process groups: distribute rows, gather features with their gradients, sum gradients, and raise errors together."""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import TrainingError, UserError, one_line

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

# Gradient values per all-reduce: large enough to be efficient, small compared with a model.
_REDUCED_AT_ONCE = 1 << 24


def accelerator_of(precision: str = "fp32", timeout_minutes: float = 10.0) -> "Accelerator":
    """Return an Accelerator that is connected to all processes of the launcher.

    Args:
        precision: auto, fp32, bf16 or fp16.
        timeout_minutes: time to wait for a process that does not respond.

    Raises:
        TrainingError: a process does not connect in time, or fewer processes joined than were started.
    """
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
            "check that each was started and can reach MASTER_ADDR, then start all again"
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
    return accelerator


def _leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _mixed_precision(precision: str) -> str:
    if precision == "auto":
        if not torch.cuda.is_available():
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "no" if precision == "fp32" else precision


class Processes:
    """A group of one or more processes. All operations are exact, even if processes have different numbers of rows.

    Args:
        accelerator: Accelerator connected to the processes; None: only this process, on the CPU.
    """

    def __init__(self, accelerator: "Accelerator | None") -> None:
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.index = 0 if accelerator is None else accelerator.process_index
        self.device = torch.device("cpu") if accelerator is None else accelerator.device

    @classmethod
    def alone(cls) -> Self:
        """Return a group of only this process, in which no operation communicates."""
        return cls(None)

    @property
    def is_main(self) -> bool:
        """True on the process that writes files and prints."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """Return the contiguous range of `total` rows that this process handles."""
        return self._share_of(self.index, total)

    def _share_of(self, index: int, total: int) -> slice:
        return slice(index * total // self.count, (index + 1) * total // self.count)

    def gather(self, rows: Float[Tensor, "B D"], total: int) -> Float[Tensor, "G D"]:
        """Gather the rows of all processes, in rank order.

        The gradient of a row is summed over the processes that use it.
        """
        if self.count == 1:
            return rows
        sizes = [self._share_of(index, total) for index in range(self.count)]
        return _GatherRows.apply(rows, sizes, self.index)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, without gradient."""
        return self._reduced(value.detach().clone(), dist.ReduceOp.SUM)

    def _reduced(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Combine a tensor with those of the other processes, in place."""
        if self.count > 1:
            with _together():
                dist.all_reduce(value, op=operation)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each gradient over all processes, for towers, scale and bias.

        A parameter without a gradient on every process stays without one, so the optimizer does not change it.
        """
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        present = self.any(*(parameter.grad is not None for parameter in learning))
        used = [parameter for parameter, is_used in zip(learning, present, strict=True) if is_used]
        for group in _groups(used, _REDUCED_AT_ONCE):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            flat = self._reduced(torch.cat([gradient.flatten() for gradient in gradients]), dist.ReduceOp.SUM)
            for parameter, summed in zip(group, flat.split([p.numel() for p in group]), strict=True):
                parameter.grad = summed.view_as(parameter).clone()

    def smallest(self, value: int) -> int:
        """Return the minimum of a value over all processes."""
        if self.count == 1:
            return value
        return int(self._reduced(torch.tensor(value, device=self.device), dist.ReduceOp.MIN))

    def largest(self, value: int) -> int:
        """Return the maximum of a value over all processes."""
        return -self.smallest(-value)

    def any(self, *facts: bool) -> list[bool]:
        """Return for each of several booleans whether it is True on at least one process."""
        if self.count == 1:
            return list(facts)
        agreed = self._reduced(torch.tensor(facts, dtype=torch.int32, device=self.device), dist.ReduceOp.MAX)
        return [bool(fact) for fact in agreed.tolist()]

    def of_main(self, value: int) -> int:
        """Return the value of the main process, on all processes."""
        return int(self.rows_of_main(torch.tensor(value)))

    def gather_objects(self, value: T) -> list[T]:
        """Return the picklable values of all processes, in rank order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context in which a user error on one process is raised on all processes.

        Raises:
            UserError: with the message of the first process that failed.
        """
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        self.raise_together(failure)

    def raise_together(self, failure: UserError | None) -> None:
        """Raise an error on all processes if any process passes a failure.

        Raises:
            UserError: with the message of the first process that has a failure.
        """
        if self.count == 1:
            if failure is not None:
                raise failure
            return
        first_failed = self.smallest(self.count if failure is None else self.index)
        if first_failed == self.count:
            return
        text = torch.zeros(2000, dtype=torch.uint8, device=self.device)
        if first_failed == self.index:
            message = str(failure).encode(errors="replace")[: len(text)]
            text[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        with _together():
            dist.broadcast(text, first_failed)
        raise UserError(bytes(text.tolist()).rstrip(b"\0").decode(errors="replace"))

    def rows_of_main(self, rows: Tensor) -> Tensor:
        """Return the main process's values of a tensor that has the same shape and data type on all processes."""
        if self.count == 1:
            return rows
        agreed = rows.to(self.device)
        with _together():
            dist.broadcast(agreed, 0)
        return agreed.to(rows.device)

    def on_main(self, work: Callable[[], None]) -> None:
        """Run `work` on the main process while the others wait; if it fails, all processes fail.

        Raises:
            UserError, TrainingError: the error that `work` raised; on the other processes an error of the same class.
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


@contextmanager
def _together() -> Iterator[None]:
    """Context for a collective operation: if another process has ended, raise a one-line error."""
    try:
        yield
    except RuntimeError as error:
        # If a loader worker dies, PyTorch raises an error in the main thread, in whatever code is running.
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        lost = TrainingError(
            f"another process of this run has ended or does not respond ({one_line(error)}); saved files are complete: "
            "start all processes again, a training run with --resume"
        )
        lost.everywhere = False
        raise lost from None


def _groups(parameters: list[nn.Parameter], numbers: int) -> Iterator[list[nn.Parameter]]:
    """Yield groups of consecutive parameters with the same data type, each with up to about `numbers` values."""
    group: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in group) + parameter.numel() > numbers
        if group and (full or group[0].dtype != parameter.dtype):
            yield group
            group = []
        group.append(parameter)
    if group:
        yield group


class _GatherRows(torch.autograd.Function):
    """Differentiable all_gather for different numbers of rows.

    The backward pass sums the gradients of all processes and keeps the rows of this process.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: list[slice], index: int) -> Tensor:
        ctx.share = shares[index]
        height = max(share.stop - share.start for share in shares)
        padded = rows.new_zeros(height, rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in shares]
        with _together():
            dist.all_gather(parts, padded)
        return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        with _together():
            dist.all_reduce(total)
        return total[ctx.share], None, None
