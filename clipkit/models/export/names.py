"""Conversion of weights between transformers and open_clip.

Tensors are only renamed, transposed, split and concatenated, so a round trip returns the same bits.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from clipkit.errors import ModelError

_PARTS = ("weight", "bias")

Side = Literal["open_clip", "transformers"]


@dataclass(frozen=True)
class Rule:
    """Tensor names in open_clip and the corresponding names in transformers; `*` stands for the layer number.

    Both lists of names have the same length. If a library stores several tensors as one tensor, concatenated along the
    first dimension, its name is repeated. For example, ("qkv", "qkv", "qkv") corresponds to ("q", "k", "v").
    """

    open_clip: tuple[str, ...]
    transformers: tuple[str, ...]
    turned: bool = False
    """True if open_clip stores the transposed matrix, because it multiplies from the right."""
    leading: bool = False
    """True if open_clip's tensor has an additional first dimension of size one."""

    def names(self, side: Side) -> tuple[str, ...]:
        return self.open_clip if side == "open_clip" else self.transformers

    def converted(self, tensors: Sequence[Tensor], to: Side) -> Iterator[Tensor]:
        """Convert tensors to the layout of the library `to`, and yield one tensor for each distinct name."""
        if to == "transformers":
            tensors = [tensor[0] if self.leading else tensor for tensor in tensors]
            tensors = [tensor.T if self.turned else tensor for tensor in tensors]
        names = self.names(to)
        parts = (torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]).chunk(len(names))
        for _, group in groupby(zip(names, parts, strict=True), key=lambda pair: pair[0]):
            joined = [part for _, part in group]
            tensor = torch.cat(joined) if len(joined) > 1 else joined[0]
            if to == "open_clip":
                tensor = tensor.T if self.turned else tensor
                tensor = tensor[None] if self.leading else tensor
            yield tensor.contiguous()


def clip_rules(text_prefix: str = "") -> list[Rule]:
    """Return the tensor names of CLIP models in open_clip and transformers.

    Args:
        text_prefix: start of the names in open_clip's text tower, `text.` if this tower is a separate module.
    """
    vision = "vision_model.embeddings"
    return [
        _one("visual.class_embedding", f"{vision}.class_embedding"),
        _one("visual.positional_embedding", f"{vision}.position_embedding.weight"),
        _one("visual.conv1.weight", f"{vision}.patch_embedding.weight"),
        *_both("visual.ln_pre", "vision_model.pre_layrnorm"),
        *_open_clip_layers("visual.transformer.resblocks.*", "vision_model.encoder.layers.*"),
        *_both("visual.ln_post", "vision_model.post_layernorm"),
        Rule(("visual.proj",), ("visual_projection.weight",), turned=True),
        *_text(text_prefix),
        Rule((f"{text_prefix}text_projection",), ("text_projection.weight",), turned=True),
    ]


def siglip_rules() -> list[Rule]:
    """Return the tensor names of SigLIP models in open_clip (with an image tower of timm) and transformers."""
    trunk, pool, head = "visual.trunk", "visual.trunk.attn_pool", "vision_model.head"
    layer = "vision_model.encoder.layers.*"
    return [
        *_both(f"{trunk}.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        Rule((f"{trunk}.pos_embed",), ("vision_model.embeddings.position_embedding.weight",), leading=True),
        *(Rule((f"{trunk}.blocks.*.attn.qkv.{part}",) * 3, _queries_keys_values(layer, part)) for part in _PARTS),
        *_layers(f"{trunk}.blocks.*", layer, ("attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")),
        *_both(f"{trunk}.norm", "vision_model.post_layernorm"),
        _one(f"{pool}.latent", f"{head}.probe"),
        *(
            Rule(
                (f"{pool}.q.{part}", f"{pool}.kv.{part}", f"{pool}.kv.{part}"),
                (f"{head}.attention.in_proj_{part}",) * 3,
            )
            for part in _PARTS
        ),
        *_both(f"{pool}.proj", f"{head}.attention.out_proj"),
        *_both(f"{pool}.norm", f"{head}.layernorm"),
        *_both(f"{pool}.mlp.fc1", f"{head}.mlp.fc1"),
        *_both(f"{pool}.mlp.fc2", f"{head}.mlp.fc2"),
        *_text("text."),
        *_both("text.text_projection", "text_model.head"),
    ]


def renamed(
    tensors: Mapping[str, Tensor], rules: Sequence[Rule], to: Side, model: str, scalar: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """Convert all tensors of a model to the names and layouts of another library.

    Args:
        tensors: all tensors by name, including logit_scale and logit_bias.
        rules: names in both libraries of all tensors except logit_scale and logit_bias.
        to: library to convert to.
        model: name of the model, for error messages.
        scalar: shape of logit_scale and logit_bias in the library `to`.

    Raises:
        ModelError: a tensor is missing, or has no counterpart in the other library.
    """
    source: Side = "transformers" if to == "open_clip" else "open_clip"
    left = dict(tensors)
    scalars: tuple[str, ...] = ("logit_scale", "logit_bias")
    converted = {name: left.pop(name).reshape(scalar) for name in scalars if name in left}
    for rule in rules:
        names, others = (list(dict.fromkeys(rule.names(side))) for side in (source, to))
        for number in _layer_numbers(names[0], tensors):
            here = [name.replace("*", number) for name in names]
            if missing := [name for name in here if name not in left]:
                raise ModelError(
                    f"{model}: the tensor {missing[0]}, which {to} needs, is missing; use a model with a "
                    "supported architecture"
                )
            parts = rule.converted([left.pop(name) for name in here], to)
            converted |= zip((name.replace("*", number) for name in others), parts, strict=True)
    if left:
        name = min(left)
        raise ModelError(
            f"{model}: the tensor {name} of shape {tuple(left[name].shape)} is not supported by {to}; "
            "use another format"
        )
    return converted


def _layer_numbers(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the layer numbers of all tensors that match a name with `*`; [""] for a name without `*`."""
    if "*" not in name:
        return [""]
    pattern = re.compile(re.escape(name).replace(r"\*", r"(\d+)"))
    return [match[1] for match in map(pattern.fullmatch, tensors) if match is not None]


def _one(open_clip: str, transformers: str) -> Rule:
    return Rule((open_clip,), (transformers,))


def _both(open_clip: str, transformers: str) -> list[Rule]:
    return [_one(f"{open_clip}.{part}", f"{transformers}.{part}") for part in _PARTS]


def _queries_keys_values(layer: str, part: str) -> tuple[str, ...]:
    return tuple(f"{layer}.self_attn.{name}_proj.{part}" for name in "qkv")


def _open_clip_layers(open_clip: str, transformers: str) -> list[Rule]:
    """Return the tensor names of open_clip's class Transformer, and the corresponding names in transformers."""
    return [
        *(Rule((f"{open_clip}.attn.in_proj_{part}",) * 3, _queries_keys_values(transformers, part)) for part in _PARTS),
        *_layers(open_clip, transformers, ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")),
    ]


def _layers(open_clip: str, transformers: str, names: Sequence[str]) -> list[Rule]:
    transformers_names = ("self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    pairs = zip(names, transformers_names, strict=True)
    return [rule for name, other in pairs for rule in _both(f"{open_clip}.{name}", f"{transformers}.{other}")]


def _text(prefix: str) -> list[Rule]:
    return [
        _one(f"{prefix}token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        _one(f"{prefix}positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *_open_clip_layers(f"{prefix}transformer.resblocks.*", "text_model.encoder.layers.*"),
        *_both(f"{prefix}ln_final", "text_model.final_layer_norm"),
    ]
