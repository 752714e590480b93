"""Blocks of an encoder: lists of parameter names, grouped by layer from input to output."""

import re
from typing import Any

from torch import nn


def transformers_blocks(model: nn.Module) -> list[list[str]]:
    """Return the parameter names of a transformers encoder, one list per layer.

    Embeddings belong to the first list. Parameters of `pooler` are left out.
    """
    stacks = [(len(m), name) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    _, stack = max(stacks, key=lambda length_and_name: length_and_name[0], default=(0, ""))
    blocks: list[list[str]] = []
    before: list[str] = []
    for name, _ in model.named_parameters():
        if name.startswith("pooler."):
            continue
        layer = re.match(rf"{re.escape(stack)}\.(\d+)\.", name) if stack else None
        if layer is None:
            (blocks[-1] if blocks else before).append(name)
            continue
        while len(blocks) <= int(layer[1]):
            blocks.append([])
        blocks[int(layer[1])].append(name)
    if not blocks:
        return [before]
    blocks[0] = before + blocks[0]
    return blocks


def timm_blocks(native: Any) -> list[list[str]]:
    """Return the parameter names of a timm model, one list per layer, as grouped by timm's `group_parameters`.

    The stem belongs to the first list, and the final norm to the last list.
    """
    from timm.models import group_parameters

    groups = group_parameters(native, native.group_matcher(coarse=False))
    stem, *blocks = [list(groups[layer]) for layer in sorted(groups)]
    if not blocks:
        return [stem]
    if len(blocks) > 1 and all(
        name.split(".")[0] in ("norm", "fc_norm", "head", "conv_head", "bn2", "attn_pool") for name in blocks[-1]
    ):
        norms = blocks.pop()
        blocks[-1] = blocks[-1] + norms
    blocks[0] = stem + blocks[0]
    return blocks


def prefixed(blocks: list[list[str]]) -> list[list[str]]:
    """Add the prefix `native.` to each parameter name.

    Trunks store their encoder in the attribute `native`.
    """
    return [[f"native.{name}" for name in block] for block in blocks]
