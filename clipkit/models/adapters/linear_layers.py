"""Search for the linear layers of a tower and their roles, e.g. q, k or v of attention."""

import re
from dataclasses import dataclass

from torch import nn

from clipkit.errors import ModelError
from clipkit.models.towers import Tower
from clipkit.recipe import LoraRecipe

# Last part of a layer's name -> roles of the equal slices of its rows, in transformers, open_clip and timm.
_ROLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("q_proj", "query", "q", "q_lin", "to_q"), ("q",)),
    **dict.fromkeys(("k_proj", "key", "k", "k_lin", "to_k"), ("k",)),
    **dict.fromkeys(("v_proj", "value", "v", "v_lin", "to_v"), ("v",)),
    **dict.fromkeys(("qkv", "Wqkv", "in_proj"), ("q", "k", "v")),
    "kv": ("k", "v"),
}
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed", re.IGNORECASE)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a tower.

    A fused weight consists of slices of equal size with different roles, e.g. q, k and v. Other weights are one slice.
    """

    name: str
    """Name of the layer in the trunk."""
    module: nn.Module
    parameter: str
    """Name of the weight in the layer."""
    roles: tuple[str, ...]
    """Role of each slice: q, k, v, out or mlp."""
    block: int
    """Number of the block in `Tower.blocks`."""


def linear_layers(tower: Tower) -> list[Linear]:
    """Return the linear layers in the blocks of a tower, without the embeddings and the projection."""
    block_of = {name: number for number, block in enumerate(tower.blocks) for name in block}
    layers = []
    for name, module in tower.trunk.named_modules():
        parameter, roles = _weight_of(name, module)
        block = block_of.get(f"{name}.{parameter}")
        if roles and block is not None:
            layers.append(Linear(name, module, parameter, roles, block))
    return layers


def chosen_layers(tower: Tower, recipe: LoraRecipe) -> list[tuple[Linear, list[str]]]:
    """Return the layers that a recipe adapts, each with the roles of its adapted slices.

    Raises:
        ModelError: the tower has none of the selected layers, or fewer than `recipe.last` blocks.
    """
    layers = linear_layers(tower)
    present = {role for layer in layers for role in layer.roles}
    if not layers:
        raise ModelError(
            f"model.{tower.side}.tune: lora and dora adapt linear layers, but the blocks of the {tower.side} "
            "tower have no linear layers; use last:N, head or full"
        )
    if recipe.last is not None and recipe.last > len(tower.blocks):
        raise ModelError(
            f"model.{tower.side}.lora.last: {recipe.last} is more than the {len(tower.blocks)} blocks of the "
            f"{tower.side} tower; use a smaller number"
        )
    attention = {"q", "k", "v"}
    targets = recipe.targets if isinstance(recipe.targets, list) else attention & present
    targets = set(targets) if recipe.targets != "all" and targets else present
    first = len(tower.blocks) - (recipe.last or len(tower.blocks))
    chosen = [(layer, [role for role in layer.roles if role in targets]) for layer in layers if layer.block >= first]
    chosen = [(layer, roles) for layer, roles in chosen if roles]
    if not chosen:
        raise ModelError(
            f"model.{tower.side}.lora.targets: {recipe.targets} are not in the adapted blocks, which have the layers "
            f"{', '.join(sorted(present))}; use some of these, or targets: all"
        )
    return chosen


def _weight_of(name: str, module: nn.Module) -> tuple[str, tuple[str, ...]]:
    """Return the name of a module's weight, and the roles of its slices; () if the module is not a linear layer."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", ("q", "k", "v") if module.in_proj_weight is not None else ()
    if not isinstance(module, nn.Linear) or _EMBEDDING.search(name):
        return "weight", ()
    roles = _ROLES.get(name.rpartition(".")[2])
    if roles is not None and module.out_features % len(roles) == 0:
        return "weight", roles
    return "weight", ("out",) if _ATTENTION.search(name) else ("mlp",)
