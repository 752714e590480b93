"""Trunks that are distributed over the processes (FSDP2, `torch.distributed.fsdp.fully_shard`)."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from clipkit.errors import RecipeError, UserError
from clipkit.models import DualEncoder
from clipkit.models.compiled import repeated_blocks
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.model import are_finite
from clipkit.training.weights import Weights


def is_sharded(recipe: Recipe, processes: Processes, precision: str) -> bool:
    """Return whether a run distributes its trunks: `train.shard` is true, and there are several processes.

    Args:
        precision: precision of the forward pass, as Accelerate names it.

    Raises:
        RecipeError: the processes would have different numbers of pairs, or the precision is fp16.
        UserError: the installed torch is too old.
    """
    if not recipe.train.shard or processes.count == 1:
        return False
    batch_size, count = recipe.train.batch_size, processes.count
    if batch_size % count:
        raise RecipeError(
            f"train.shard: {count} processes need equal numbers of pairs, but train.batch_size is "
            f"{batch_size}; set train.batch_size to {batch_size // count * count or count} or "
            f"{(batch_size // count + 1) * count}"
        )
    if precision == "fp16":
        raise RecipeError("train.shard does not support train.precision fp16; use bf16 or fp32")
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(
            f"train.shard needs torch 2.9 or newer, but torch {torch.__version__} is installed; upgrade torch"
        )
    return True


class Shards(Weights):
    """Trained weights of a model whose trunks are distributed over the processes (FSDP2).

    Each process has some rows of each trunk parameter, of its gradient and of its optimizer moments. A forward or
    backward pass gathers one block at a time. The projections, the scale and the bias are whole on each process.

    Each trunk exists twice. The distributed copy is trained. The original trunk has weights only in `model_is_whole`
    and after `end`; otherwise, it is empty.

    Args:
        model: the model, on the CPU; it is changed in place.
        offloads: True to keep this process's rows, gradients and moments on the CPU, where the optimizer runs.

    Raises:
        RecipeError: two trunks share parameters.
    """

    is_sharded = True

    def __init__(self, model: DualEncoder, processes: Processes, offloads: bool = False) -> None:
        self.model: DualEncoder = model
        self.processes = processes
        self._whole = {side: tower.trunk for side, tower in model.sides.items()}
        parameters = [{*trunk.parameters()} for trunk in self._whole.values()]
        if len(parameters) == 2 and parameters[0] & parameters[1]:
            raise RecipeError(f"train.shard: the towers of {model.name} share parameters; set train.shard: false")
        copies = {side: copy.deepcopy(trunk) for side, trunk in self._whole.items()}
        self._empty()
        model.to(processes.device)
        for side, trunk in copies.items():
            _shard(trunk, processes, offloads)
            model.sides[side].trunk = trunk
        self._sharded = copies
        self._all: dict[str, nn.Parameter] = {}
        """Parameters of the model; for a distributed parameter, the part of this process, in the same memory."""
        self._distributed: dict[str, DTensor] = {}
        for name, parameter in model.named_parameters():
            self._all[name] = parameter
            if isinstance(parameter, DTensor):
                self._distributed[name] = parameter
                self._all[name] = nn.Parameter(parameter.to_local().detach(), requires_grad=parameter.requires_grad)
        self.trained = {name: parameter for name, parameter in self._all.items() if parameter.requires_grad}

    def collect_gradients(self) -> None:
        for name, distributed in self._distributed.items():
            if isinstance(distributed.grad, DTensor):
                self._all[name].grad = distributed.grad.to_local()
                distributed.grad = None

    def sum_of_squares(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, value in values.items():
            kinds[name in self._distributed].append(value)
        whole, parts = (torch.nn.utils.get_total_norm(of_kind).square() for of_kind in kinds)
        device = self.processes.device
        return whole.to(device) + self.processes.sum(parts).to(device)

    def clip_gradients(self, accelerator: Accelerator, most: float) -> Float[Tensor, ""]:
        gradients = {name: value.grad for name, value in self.trained.items() if value.grad is not None}
        norm = self.sum_of_squares(gradients).sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.trained.values(), most, norm)
        return norm

    def are_finite(self) -> bool:
        by_device: dict[torch.device, list[Tensor]] = {}
        for parameter in self.trained.values():
            by_device.setdefault(parameter.device, []).append(parameter)
        finite = all(are_finite(weights) for weights in by_device.values())
        return not self.processes.any(not finite)[0]

    def to_file(self, name: str, value: Tensor) -> Tensor:
        whole = self._whole_of(name, value)
        return whole.cpu() if self.processes.is_main else whole.new_empty(0)

    def _whole_of(self, name: str, value: Tensor) -> Tensor:
        """Gather a complete tensor from the rows that each process has.

        A tensor that is not distributed is returned unchanged.
        """
        if name not in self._distributed or not value.ndim:
            return value
        shape = self._distributed[name].shape
        height = -(-shape[0] // self.processes.count)
        rows = value.detach().reshape(len(value), shape[1:].numel())
        padded = torch.cat([rows, rows.new_zeros(height - len(rows), rows.shape[1])])
        gathered = self.processes.gather(padded, height * self.processes.count)
        return gathered[: shape[0]].view(shape)

    def from_file(self, name: str, value: Tensor) -> Tensor:
        if name not in self._distributed or not value.ndim:
            return value
        parts = value.chunk(self.processes.count)
        index = self.processes.index
        return parts[index] if index < len(parts) else value[:0]

    @contextmanager
    def model_is_whole(self) -> Iterator[None]:
        """Return a context in which the model has all its weights on each process.

        All processes must enter the context together.
        """
        self.end()
        try:
            yield
        finally:
            self._empty()
            for side, trunk in self._sharded.items():
                self.model.sides[side].trunk = trunk

    def end(self) -> None:
        for side, trunk in self._whole.items():
            for name, parameter in trunk.named_parameters():
                full = f"{side}.trunk.{name}"
                parameter.data = self._whole_of(full, self._all[full]).to(self.processes.device)
            self.model.sides[side].trunk = trunk

    def _empty(self) -> None:
        """Free the weights of the original trunks, because the distributed copies are used instead."""
        for trunk in self._whole.values():
            for parameter in trunk.parameters():
                parameter.data = parameter.data.new_empty(0)


def _shard(trunk: nn.Module, processes: Processes, offloads: bool) -> None:
    """Distribute the parameters of a trunk over the processes, in place.

    First, each block is distributed, then the parameters outside of blocks.
    """
    device = processes.device.type
    mesh = init_device_mesh(device, (processes.count,))
    policy = CPUOffloadPolicy(pin_memory=device != "cpu") if offloads else OffloadPolicy()
    for parameter in trunk.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 distributes only contiguous parameters
    single = {parameter for parameter in trunk.parameters() if not parameter.ndim}  # scalars are whole on each process
    for parameter in single:
        parameter.data = parameter.data.to(processes.device)
    for module in (*repeated_blocks(trunk), trunk):
        # The whole trunk is also freed after its forward pass, so that other code sees only the rows of this process.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, offload_policy=policy, ignored_params=single)
        assert isinstance(module, FSDPModule)
        # A step sums the gradients over the processes; FSDP2 would average them.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
