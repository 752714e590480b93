"""Trunks: wrappers of encoders of transformers, timm and open_clip that return one vector per input."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class _Wrapper(nn.Module):
    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native = native


class Pooled(_Wrapper):
    """Trunk that returns the pooled output of a transformers encoder."""

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        output = self.native(**inputs).pooler_output
        return output.flatten(1)  # convolutional towers keep two dimensions of size one


class FirstToken(_Wrapper):
    """Trunk that returns the state of the first token of a transformers encoder."""

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        return self.native(**inputs).last_hidden_state[:, 0]


class Patches(_Wrapper):
    """Image encoder of SigLIP 2 NaFlex, which keeps the aspect ratio of images. Its inputs are rows of patches."""

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        # Passed by position: before transformers 5.5, the encoder's name for the mask is attention_mask.
        return self.native(pixel_values, pixel_attention_mask, spatial_shapes).pooler_output


class TextTrunk(_Wrapper):
    """Transformers text encoder with configurable pooling: mean, last or cls (first token)."""

    def __init__(self, native: Any, pooling: str) -> None:
        super().__init__(native)
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "B W"]:
        states = self.native(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        match self.pooling:
            case "mean":
                return mean_of_tokens(states, attention_mask)
            case "last":
                return last_token(states, attention_mask)
            case _:
                return states[:, 0]


class ImageTrunk(_Wrapper):
    """timm model without its classifier."""

    def forward(self, pixel_values: Tensor) -> Float[Tensor, "B W"]:
        return self.native(pixel_values)


class Native(_Wrapper):
    """Trunk that calls a tower of open_clip. Of several outputs (CoCa), the first is used."""

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        tokens = inputs.get("input_ids")
        output = self.native(inputs["pixel_values"] if tokens is None else tokens)
        return output[0] if isinstance(output, tuple) else output


class CausalText(nn.Module):
    """Causal text transformer of open_clip that returns the state of the end token.

    Captions can have any length, because tokens after the end token have no effect. In contrast, open_clip's `forward`
    requires the full context length.

    Args:
        native: open_clip's CLIP model or TextTransformer.
        end: ID of the end token; None: the highest ID in each caption.
    """

    def __init__(self, native: Any, end: int | None) -> None:
        super().__init__()
        self.token_embedding = native.token_embedding
        self.positional_embedding = native.positional_embedding
        self.transformer = native.transformer
        self.ln_final = native.ln_final
        self.attn_mask: Tensor
        self.register_buffer("attn_mask", native.attn_mask, persistent=False)
        self.end = end

    @property
    def native(self) -> nn.Module:
        """The module itself. Every trunk provides its encoder as `native`."""
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing. Towers of open_clip have the same method."""
        self.transformer.grad_checkpointing = enable

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "B W"]:
        length = input_ids.shape[1]
        states = self.token_embedding(input_ids) + self.positional_embedding[:length]
        states = self.transformer(states, attn_mask=self.attn_mask[:length, :length])
        ends = input_ids if self.end is None else (input_ids == self.end).int()
        return self.ln_final(states)[torch.arange(len(states), device=states.device), ends.argmax(dim=1)]


def mean_of_tokens(states: Float[Tensor, "B L W"], attention_mask: Tensor) -> Float[Tensor, "B W"]:
    """Return the mean over all tokens except padding (Reimers and Gurevych 2019, Sentence-BERT).

    The mask (B, L) is 0 at padding.
    """
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def last_token(states: Float[Tensor, "B L W"], attention_mask: Tensor) -> Float[Tensor, "B W"]:
    """Return the state of the last token before the padding."""
    last = attention_mask.sum(dim=1) - 1
    return states[torch.arange(len(states), device=states.device), last]
