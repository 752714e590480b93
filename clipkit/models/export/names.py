"""One weight, two names: how transformers and open_clip call, turn and join the same tensors.

Only renaming, transposing, cutting and joining: a round trip gives back the same bits.
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
    """The same numbers in both libraries, in parts of equal size along the first dimension; `*` is a layer's number.

    A name that stands several times is one tensor that holds several parts, as the joined q, k and v.
    """

    open_clip: tuple[str, ...]
    transformers: tuple[str, ...]
    turned: bool = False
    """open_clip multiplies from the right, so its matrix is transposed."""
    leading: bool = False
    """open_clip's has one more dimension, of size one, before the others."""

    def names(self, side: Side) -> tuple[str, ...]:
        return self.open_clip if side == "open_clip" else self.transformers

    def converted(self, tensors: Sequence[Tensor], to: Side) -> Iterator[Tensor]:
        """From this side's tensors, each once, to the other's."""
        if to == "transformers":
            tensors = [tensor[0] if self.leading else tensor for tensor in tensors]
            tensors = [tensor.T if self.turned else tensor for tensor in tensors]
        names = self.names(to)
        parts = (torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]).chunk(len(names))
        for _, own in groupby(zip(names, parts, strict=True), key=lambda pair: pair[0]):
            whole = [part for _, part in own]
            tensor = torch.cat(whole) if len(whole) > 1 else whole[0]
            if to == "open_clip":
                tensor = tensor.T if self.turned else tensor
                tensor = tensor[None] if self.leading else tensor
            yield tensor.contiguous()


def clip_rules(text_prefix: str = "") -> list[Rule]:
    """Of CLIP. Where open_clip builds the text tower as a module of its own, its names begin with `text.`."""
    vision = "vision_model.embeddings"
    return [
        _one("visual.class_embedding", f"{vision}.class_embedding"),
        _one("visual.positional_embedding", f"{vision}.position_embedding.weight"),
        _one("visual.conv1.weight", f"{vision}.patch_embedding.weight"),
        *_both("visual.ln_pre", "vision_model.pre_layrnorm"),
        *_own_layers("visual.transformer.resblocks.*", "vision_model.encoder.layers.*"),
        *_both("visual.ln_post", "vision_model.post_layernorm"),
        Rule(("visual.proj",), ("visual_projection.weight",), turned=True),
        *_text(text_prefix),
        Rule((f"{text_prefix}text_projection",), ("text_projection.weight",), turned=True),
    ]


def siglip_rules() -> list[Rule]:
    """Of SigLIP, whose image tower open_clip takes from timm."""
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


def renamed(tensors: Mapping[str, Tensor], rules: Sequence[Rule], to: Side, model: str) -> dict[str, Tensor]:
    """All tensors of a model by the other library's names.

    Args:
        tensors: by name; the scale and the bias are not among them.
        rules: of its family.
        to: the other library.
        model: its name, for errors.

    Raises:
        ModelError: there is a tensor that the other library has no place for, or one is missing; names it.
    """
    source: Side = "transformers" if to == "open_clip" else "open_clip"
    left = dict(tensors)
    found: dict[str, Tensor] = {}
    for rule in rules:
        names, others = (list(dict.fromkeys(rule.names(side))) for side in (source, to))
        for number in _layer_numbers(names[0], tensors):
            here = [name.replace("*", number) for name in names]
            if missing := [name for name in here if name not in left]:
                raise ModelError(
                    f"{model}: has no tensor {missing[0]}, which {to} needs; it is of another architecture"
                )
            parts = rule.converted([left.pop(name) for name in here], to)
            found |= zip((name.replace("*", number) for name in others), parts, strict=True)
    if left:
        name = min(left)
        raise ModelError(f"{model}: {to} has no place for its tensor {name} {tuple(left[name].shape)}")
    return found


def _layer_numbers(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The layers that have such a tensor; of one that belongs to no layer, an empty string."""
    if "*" not in name:
        return [""]
    pattern = re.compile(re.escape(name).replace(r"\*", r"(\d+)"))
    return [match[1] for match in map(pattern.fullmatch, tensors) if match is not None]


def _one(theirs: str, native: str) -> Rule:
    return Rule((theirs,), (native,))


def _both(theirs: str, native: str) -> list[Rule]:
    return [_one(f"{theirs}.{part}", f"{native}.{part}") for part in _PARTS]


def _queries_keys_values(layer: str, part: str) -> tuple[str, ...]:
    return tuple(f"{layer}.self_attn.{name}_proj.{part}" for name in "qkv")


def _own_layers(theirs: str, native: str) -> list[Rule]:
    """Blocks as open_clip builds them itself."""
    return [
        *(Rule((f"{theirs}.attn.in_proj_{part}",) * 3, _queries_keys_values(native, part)) for part in _PARTS),
        *_layers(theirs, native, ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")),
    ]


def _layers(theirs: str, native: str, names: Sequence[str]) -> list[Rule]:
    natives = ("self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    pairs = zip(names, natives, strict=True)
    return [rule for name, own in pairs for rule in _both(f"{theirs}.{name}", f"{native}.{own}")]


def _text(prefix: str) -> list[Rule]:
    return [
        _one(f"{prefix}token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        _one(f"{prefix}positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *_own_layers(f"{prefix}transformer.resblocks.*", "text_model.encoder.layers.*"),
        *_both(f"{prefix}ln_final", "text_model.final_layer_norm"),
    ]
