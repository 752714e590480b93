"""What towers need in memory."""

import torch
from torch import Tensor, nn


def graph_bytes(tower: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that the graph of these inputs keeps for the backward pass, parameters aside, and the inputs themselves."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    kept: dict[int, int] = {}

    def count(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        features = tower(inputs)
    total = sum(kept.values()) + sum(value.nbytes for value in inputs.values())
    del features
    return total


@torch.no_grad()
def widest_layer_bytes(tower: nn.Module, inputs: dict[str, Tensor]) -> int:
    """The most bytes that go into and come out of one layer: about what inference needs beside the parameters."""
    widest = 0

    def measure(layer: nn.Module, given: tuple[object, ...], output: object) -> None:
        nonlocal widest
        several = [*given, *(output if isinstance(output, tuple) else (output,))]
        widest = max(widest, sum(value.nbytes for value in several if isinstance(value, Tensor)))

    leaves = [module for module in tower.modules() if not any(True for _ in module.children())]
    hooks = [layer.register_forward_hook(measure) for layer in leaves]
    try:
        tower(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return widest + sum(value.nbytes for value in inputs.values())
