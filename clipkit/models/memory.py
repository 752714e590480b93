"""Memory use and output width of towers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.models.adapters.attach import adapted_layers
from clipkit.models.compiled import uncompiled
from clipkit.models.devices import is_shard
from clipkit.models.preprocess import stack_inputs
from clipkit.models.towers import ImageTower, TextTower


def graph_bytes(tower: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return the size in bytes of the activations that a forward pass keeps for the backward pass.

    The size includes the inputs. It excludes parameters and the weights that adapters compute, because their size does
    not depend on the batch.
    """
    own = [parameter for parameter in tower.parameters() if not is_shard(parameter)]
    parameters = {parameter.untyped_storage().data_ptr() for parameter in own}
    kept: dict[int, torch.UntypedStorage] = {}
    saved_tensors: list[Tensor] = []

    def count(saved: Tensor) -> None:
        # Detach the tensor: a graph whose nodes refer to their own outputs would never be freed.
        saved_tensors.append(saved.detach())
        storage = saved.untyped_storage()
        if storage.data_ptr() not in parameters and not is_of_adapter(saved):
            kept[storage.data_ptr()] = storage

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved)
    with _computed_by_adapters(tower) as is_of_adapter, hooks:
        tower(inputs)
    # FSDP2 frees the parameters that it gathered after the forward pass, so their storages have 0 bytes here.
    return sum(storage.nbytes() for storage in kept.values()) + sum(value.nbytes for value in inputs.values())


@contextmanager
def _computed_by_adapters(tower: nn.Module) -> Iterator[Callable[[Tensor], bool]]:
    """Context that yields a function, which returns whether a given tensor was computed by an adapter.

    This includes the weights that adapters return, and all tensors that autograd saves while an adapter runs.
    """
    running: list[nn.Module] = []
    weights: list[Tensor] = []  # kept, so that no other tensor gets their memory

    def begin(adapter: nn.Module, _: object) -> None:
        running.append(adapter)

    def end(_: nn.Module, __: object, weight: Tensor) -> None:
        running.pop()
        weights.append(weight)

    adapters = [adapter for *_, adapter in adapted_layers(tower)]
    hooks = [adapter.register_forward_pre_hook(begin) for adapter in adapters]
    hooks += [adapter.register_forward_hook(end) for adapter in adapters]
    try:
        with uncompiled(tower) if adapters else nullcontext():
            yield lambda saved: bool(running) or any(saved.data_ptr() == weight.data_ptr() for weight in weights)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def widest_layer_bytes(tower: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return the size in bytes of the inputs and outputs of the largest layer.

    Inference needs about this much memory in addition to the parameters.
    """
    widest = 0

    def measure(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal widest
        several = [*inputs, *(output if isinstance(output, tuple) else (output,))]
        widest = max(widest, sum(value.nbytes for value in several if isinstance(value, Tensor)))

    leaves = [module for module in tower.modules() if not any(True for _ in module.children())]
    hooks = [layer.register_forward_hook(measure) for layer in leaves]
    try:
        tower(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return widest + sum(value.nbytes for value in inputs.values())


@torch.no_grad()
def trunk_width(tower: ImageTower | TextTower) -> int:
    """Return the dimension of the trunk's output."""
    if isinstance(tower, ImageTower):
        inputs = stack_inputs([tower.preprocess(Image.new("RGB", (224, 224)))])
    else:
        inputs = tower.tokenize(["a"])
    training, device = tower.training, next(tower.parameters()).device
    width: int = tower.eval().trunk(**{name: value.to(device) for name, value in inputs.items()}).shape[1]
    tower.train(training)
    return width
