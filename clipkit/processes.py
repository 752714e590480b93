"""What the processes of a run do together: share rows, gather features with their gradient, sum gradients."""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import TrainingError, UserError, one_line

T = TypeVar("T")

# Numbers in one reduction: large enough to be efficient, small beside a model.
_REDUCED_AT_ONCE = 1 << 24


def accelerator_of(precision: str = "fp32", timeout_minutes: float = 10.0) -> Accelerator:
    """Accelerate with all the processes that were started.

    Args:
        precision: auto, fp32, bf16 or fp16.
        timeout_minutes: how long a process waits for another one that does not answer.

    Raises:
        TrainingError: Accelerate joined fewer than were started.
    """
    AcceleratorState._reset_state()  # another run in this Python may have had another precision
    # Told that it is on a CPU, Accelerate joins the processes of a launcher; left alone, each would run by itself.
    accelerator = Accelerator(
        mixed_precision=_mixed_precision(precision),
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise TrainingError(
            f"{asked} processes were started but Accelerate joined {accelerator.num_processes}; "
            "start them with --processes N"
        )
    if asked > 1:
        # Left to the interpreter's end, gloo's threads end the process with an abort every other time.
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
    """The processes of a run, one or many. Everything here is exact for shares of unequal size."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.count = accelerator.num_processes
        self.index = accelerator.process_index
        self.device = accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this one writes the files."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """This process's contiguous rows of `total`."""
        return self._share_of(self.index, total)

    def _share_of(self, index: int, total: int) -> slice:
        return slice(index * total // self.count, (index + 1) * total // self.count)

    def gather(self, rows: Float[Tensor, "B D"], total: int) -> Float[Tensor, "G D"]:
        """All processes' rows in order. The gradient of a row is summed over the processes that used it."""
        if self.count == 1:
            return rows
        sizes = [self._share_of(index, total) for index in range(self.count)]
        return _GatherRows.apply(rows, sizes, self.index)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        total = value.detach().clone()
        if self.count > 1:
            with _together():
                dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes: towers, scale and bias alike.

        A parameter that no process has a gradient for stays without one, so that the optimiser leaves it alone.
        """
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([parameter.grad is not None for parameter in learning], dtype=torch.int32)
        present = present.to(self.device)
        with _together():
            dist.all_reduce(present, op=dist.ReduceOp.MAX)
        used = [parameter for parameter, here in zip(learning, present.tolist(), strict=True) if here]
        for group in _groups(used, _REDUCED_AT_ONCE):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            with _together():
                dist.all_reduce(flat)
            for parameter, summed in zip(group, flat.split([p.numel() for p in group]), strict=True):
                parameter.grad = summed.view_as(parameter).clone()

    def smallest(self, value: int) -> int:
        """The smallest of the processes' values."""
        if self.count == 1:
            return value
        agreed = torch.tensor(value, device=self.device)
        with _together():
            dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return int(agreed)

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        return -self.smallest(-value)

    def any(self, *facts: bool) -> list[bool]:
        """Whether each fact holds on any of the processes."""
        if self.count == 1:
            return list(facts)
        agreed = torch.tensor(facts, dtype=torch.int32, device=self.device)
        with _together():
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return [bool(fact) for fact in agreed.tolist()]

    def of_main(self, value: int) -> int:
        """The first process's value."""
        if self.count == 1:
            return value
        agreed = torch.tensor(value, device=self.device)
        with _together():
            dist.broadcast(agreed, 0)
        return int(agreed)

    def gather_objects(self, value: T) -> list[T]:
        """Every process's value, in order; anything that pickles."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(found, value)
        return found

    def raise_together(self, failure: UserError | None) -> None:
        """Where some processes found what a user has to mend, raise the first one's finding on all of them.

        Raises:
            UserError: with that process's message.
        """
        if self.count == 1:
            if failure is not None:
                raise failure
            return
        whose = self.smallest(self.count if failure is None else self.index)
        if whose == self.count:
            return
        text = torch.zeros(2000, dtype=torch.uint8, device=self.device)
        if whose == self.index:
            said = str(failure).encode(errors="replace")[: len(text)]
            text[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        with _together():
            dist.broadcast(text, whose)
        raise UserError(bytes(text.tolist()).rstrip(b"\0").decode(errors="replace"))

    def rows_of_main(self, rows: Tensor) -> Tensor:
        """The first process's values of a tensor that has this shape and type on all."""
        if self.count == 1:
            return rows
        agreed = rows.to(self.device)
        with _together():
            dist.broadcast(agreed, 0)
        return agreed.to(rows.device)

    def on_main(self, work: Callable[[], None]) -> None:
        """Let the first process do something while the others wait; where it fails, all do.

        Raises:
            UserError, TrainingError: what `work` raised; on the others one of the same kind.
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
            raise kind("the first process cannot go on")


@contextmanager
def _together() -> Iterator[None]:
    """Around what needs all processes: the loss of one becomes a line that says so."""
    try:
        yield
    except RuntimeError as error:
        # A loader worker's death is raised wherever the run happens to be.
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        lost = TrainingError(
            f"another process of this run is gone or does not answer ({one_line(error)}); what was saved is whole: "
            "start all of them again, a training run with --resume"
        )
        lost.everywhere = False
        raise lost from None


def _groups(parameters: list[nn.Parameter], numbers: int) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of one type, up to about so many numbers together."""
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
    """all_gather of unequal row counts; backward sums every process's gradient and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: list[slice], index: int) -> Tensor:
        ctx.own = shares[index]
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
        return total[ctx.own], None, None
