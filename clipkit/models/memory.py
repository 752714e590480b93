"""Memory use and output dimension of towers."""

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.models.preprocess import stack_inputs
from clipkit.models.towers import ImageTower, TextTower


def graph_bytes(tower: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return the size in bytes of the activations kept for the backward pass.

    The size includes the inputs, but not the parameters.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(saved: Tensor) -> None:
        # Detached: a graph whose nodes hold their own outputs is never freed.
        if (address := saved.untyped_storage().data_ptr()) not in parameters:
            kept[address] = saved.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        tower(inputs)
    return sum(value.untyped_storage().nbytes() for value in kept.values()) + sum(
        value.nbytes for value in inputs.values()
    )


@torch.no_grad()
def widest_layer_bytes(tower: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return the size in bytes of the inputs and outputs of the largest layer.

    Inference needs about this much in addition to the parameters.
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
