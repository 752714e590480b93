"""Attaching adapters to layers, and merging adapters into weights.

A layer with an adapter keeps the names of all its parameters. Only its class changes: in the new class, reading the
weight returns the adapted weight. So the code of attention, fused projections, gradient checkpointing and compiled
blocks works unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.models.adapters.linear_layers import chosen_layers
from clipkit.models.adapters.low_rank import Adapter
from clipkit.models.devices import is_shard
from clipkit.models.towers import Tower
from clipkit.recipe import LoraRecipe

ATTRIBUTE = "adapter"
"""Name of the adapter in its layer."""


def attach_adapters(tower: Tower, recipe: LoraRecipe, with_magnitude: bool) -> None:
    """Add adapters to the layers that a recipe selects, and freeze the other weights of the tower.

    A newly initialized projection stays trainable. The names of the adapter parameters are added to `tower.blocks`.
    The adapters are initialized with torch's global random generator.

    Args:
        tower: tower that is changed in place.
        recipe: layers to adapt, and rank, alpha and dropout of the adapters.
        with_magnitude: True for DoRA, False for LoRA.

    Raises:
        ModelError: the tower has none of the selected layers, or fewer blocks than `recipe.last`.
    """
    blocks = [list(block) for block in tower.blocks]
    added = []
    for layer, roles in chosen_layers(tower, recipe):
        weight = layer.module._parameters[layer.parameter]
        assert weight is not None
        adapter = Adapter(weight, layer.roles, roles, recipe, with_magnitude)
        layer.module.__class__ = _adapted(type(layer.module), layer.parameter)  # type: ignore[arg-type]
        setattr(layer.module, ATTRIBUTE, adapter)
        names = [f"{layer.name}.{ATTRIBUTE}.{name}" for name, _ in adapter.named_parameters()]
        blocks[layer.block] += names
        added += names
    tower.blocks = blocks
    tower.set_trainable(added, head=tower.head_is_new)


def is_of_adapter(parameter: str) -> bool:
    """Return whether a parameter with this name belongs to an adapter.

    Example:
        >>> is_of_adapter("image.trunk.native.blocks.0.attn.qkv.adapter.parts.q.lora_A")
        True
    """
    return f".{ATTRIBUTE}." in parameter


def adapted_layers(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter, Adapter]]:
    """Yield (layer, frozen weight, adapter) for each layer that has an adapter."""
    for module in model.modules():
        if isinstance(adapter := module._modules.get(ATTRIBUTE), Adapter):
            weight = module._parameters[_parameter_of(module)]
            assert weight is not None
            yield module, weight, adapter


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge all adapters into the weights inside a `with` block, and restore the adapters afterwards.

    Inside the block, the layers are ordinary layers without adapters.
    """
    undo: list[tuple[Any, nn.Parameter, Tensor, Adapter, type]] = []
    try:
        for layer, weight, adapter in list(adapted_layers(model)):
            undo.append((layer, weight, weight.data, adapter, type(layer)))
            weight.data = _without_dropout(adapter, weight.data)
            delattr(layer, ATTRIBUTE)
            layer.__class__ = type(layer).__bases__[0]
        yield
    finally:
        for layer, weight, base, adapter, kind in undo:
            weight.data = base
            layer.__class__ = kind
            setattr(layer, ATTRIBUTE, adapter)


def interpolate_adapters(model: nn.Module, alpha: float) -> None:
    """Move the adapted weights toward the base weights, by changing only the adapters.

    The adapted weights become (1 - alpha) · (base weights) + alpha · (current adapted weights).
    """
    for _, weight, adapter in adapted_layers(model):
        for part, rows in adapter.slices(weight):
            if part is not None:
                part.interpolate(rows, alpha)


@torch.no_grad()
def _without_dropout(adapter: Adapter, weight: Tensor) -> Tensor:
    learning = [module for module in adapter.modules() if module.training]
    try:
        return adapter.eval()(weight)
    finally:
        for module in learning:
            module.training = True


@cache
def _adapted(kind: Any, parameter: str) -> type[nn.Module]:
    """Return a subclass of the layer class `kind` whose attribute `parameter` is the adapted weight."""
    # The cache gives all layers of one class the same subclass, so that compilers see a single class.

    def weight(layer: Any) -> Tensor:
        computed, stored = layer.__dict__.get("_computed"), layer._parameters[parameter]
        if is_shard(stored):  # FSDP2 reads its shard; in a forward pass, the weight is whole and not a shard
            return stored
        return layer.adapter(stored) if computed is None else computed

    def forward(layer: Any, *inputs: Any, **options: Any) -> Any:
        # Compute the adapted weight once per call, although attention reads it several times.
        layer.__dict__["_computed"] = layer.adapter(layer._parameters[parameter])
        try:
            return kind.forward(layer, *inputs, **options)
        finally:
            layer.__dict__["_computed"] = None

    members = {parameter: property(weight), "library_class": getattr(kind, "library_class", kind)}
    if issubclass(kind, nn.MultiheadAttention):
        members["forward"] = forward
    return type(f"Adapted{kind.__name__}", (kind,), members)


def _parameter_of(layer: nn.Module) -> str:
    return next(name for name, value in vars(type(layer)).items() if isinstance(value, property))
