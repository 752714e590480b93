"""Table of the supported model families of transformers.

To add a dual encoder, add a row to `FAMILIES`. To add a text encoder for composed models, add a row to `TEXT_ENCODERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from clipkit.models.trunks import FirstToken, Patches, Pooled


@dataclass(frozen=True)
class TextEncoder:
    """Properties of a text encoder that its configuration does not contain."""

    padding: Literal["cut", "masked", "used"] = "masked"
    """cut: padding has no effect (causal attention, or a mask that is always applied), so it may be cut off;
    used: the encoder attends to padding and takes no mask; masked: not verified, so captions keep their full length."""
    offset_positions: bool = False
    """True if position numbers start after the padding token's id."""

    def positions(self, config: Any) -> int | None:
        """Return the maximum number of tokens that the encoder supports, or None if there is no limit."""
        positions: int | None = getattr(config, "max_position_embeddings", None)
        if positions is not None and self.offset_positions:
            return positions - int(config.pad_token_id) - 1
        return positions


@dataclass(frozen=True)
class Family:
    """A dual-encoder class of transformers, and how clipkit splits it into two towers."""

    class_name: str
    text_type: str | None = None
    """`model_type` of its text encoder's configuration; None if it takes any encoder of `TEXT_ENCODERS`."""
    text_encoder: TextEncoder = TextEncoder("cut")
    image: Callable[[nn.Module], nn.Module] = Pooled
    text: Callable[[nn.Module], nn.Module] = Pooled
    longest: int | None = None
    """Context length set by the family's processor, if shorter than the model's positions allow."""
    pipeline: bool = True
    """True if transformers' zero-shot pipeline pads captions in the same way as the training of the model."""
    open_clip: Literal["clip", "siglip"] | None = None
    """Architecture of open_clip that holds the same weights."""


# `model_type` in config.json -> family.
FAMILIES = {
    "align": Family("AlignModel", "align_text_model", text=FirstToken, longest=64),
    "altclip": Family("AltCLIPModel", "altclip_text_model", TextEncoder("cut", offset_positions=True), text=FirstToken),
    "chinese_clip": Family("ChineseCLIPModel", "chinese_clip_text_model", text=FirstToken),
    "clip": Family("CLIPModel", "clip_text_model", open_clip="clip"),
    "metaclip_2": Family("MetaClip2Model", "metaclip_2_text_model", open_clip="clip"),
    "siglip": Family("SiglipModel", "siglip_text_model", TextEncoder("used"), open_clip="siglip"),
    "siglip2": Family("Siglip2Model", "siglip2_text_model", TextEncoder("used"), image=Patches),
    "vision-text-dual-encoder": Family("VisionTextDualEncoderModel", pipeline=False),
}

# `model_type` of a text encoder's configuration -> its properties, also for the text towers of dual encoders.
TEXT_ENCODERS = {family.text_type: family.text_encoder for family in FAMILIES.values() if family.text_type} | {
    "albert": TextEncoder("cut"),
    "bert": TextEncoder("cut"),
    "camembert": TextEncoder("cut", offset_positions=True),
    "data2vec-text": TextEncoder(offset_positions=True),
    "deberta-v2": TextEncoder("cut"),
    "distilbert": TextEncoder("cut"),
    "electra": TextEncoder("cut"),
    "gemma3_text": TextEncoder("cut"),
    "modernbert": TextEncoder("cut"),
    "mpnet": TextEncoder("cut", offset_positions=True),
    "mt5": TextEncoder("cut"),
    "qwen3": TextEncoder("cut"),
    "roberta": TextEncoder("cut", offset_positions=True),
    "t5": TextEncoder("cut"),
    "umt5": TextEncoder("cut"),
    "xlm-roberta": TextEncoder("cut", offset_positions=True),
}


def text_encoder(config: Any) -> TextEncoder:
    """Return the properties of a text encoder, or safe defaults if its model type is unknown.

    Args:
        config: transformers configuration of the encoder.
    """
    return TEXT_ENCODERS.get(config.model_type, TextEncoder())


def family_of_class(class_name: str | None) -> Family | None:
    """Return the family of a transformers class, or None if the class belongs to no family."""
    return next((family for family in FAMILIES.values() if family.class_name == class_name), None)
