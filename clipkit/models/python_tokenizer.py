"""Tokenizers that are Python functions of the user."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.errors import ModelError, one_line
from clipkit.images import kind_of
from clipkit.models.tokenizer import MOST_TOKENS, Tokenizer, TransformersTokenizer

_LONG = "word " * 2000


class PythonTokenizer:
    """Tokenizer that calls a Python function.

    Args:
        function: function from M strings to `input_ids` (M, L), or to a dict with `input_ids` and optionally
            `attention_mask`. Without a mask, L must be constant.

    Raises:
        ModelError: the function fails, returns something else, or pads to different lengths without a mask.
    """

    source = None

    def __init__(self, function: Callable[[list[str]], Any]) -> None:
        self.function = function
        short, long = self(["a"])["input_ids"], self(["a", _LONG])
        self.context_length = int(long["input_ids"].shape[1])
        if "attention_mask" not in long and short.shape[1] != self.context_length:
            raise ModelError(
                f"the tokenizer returns {short.shape[1]} tokens for 'a' and {self.context_length} for a long text, "
                "without an attention_mask, so features would depend on the other texts of a batch; pad to a fixed "
                "length, or also return an attention_mask"
            )
        self.vocab_size = int(getattr(function, "vocab_size", None) or long["input_ids"].max() + 1)
        self.pad_id = int(getattr(function, "pad_token_id", None) or 0)

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        try:
            made = self.function(texts)
        except Exception as error:  # the user's function may raise any error
            raise ModelError(
                f"the tokenizer fails for a list of strings ({one_line(error)}); fix the tokenizer"
            ) from None
        tokens = made if isinstance(made, Mapping) else {"input_ids": made}
        found = {name: torch.as_tensor(tokens[name]) for name in ("input_ids", "attention_mask") if name in tokens}
        ids = found.get("input_ids")
        if ids is None or ids.ndim != 2 or len(ids) != len(texts) or ids.is_floating_point():
            shape = kind_of(made) if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
            raise ModelError(
                f"the tokenizer returned {shape} for {len(texts)} strings; return whole numbers ({len(texts)}, L), "
                "or a dict with input_ids and attention_mask"
            )
        return {name: value.long() for name, value in found.items()}

    def count(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each string after truncation. The number before truncation is unknown."""
        tokens = self(texts)
        mask = tokens.get("attention_mask", (tokens["input_ids"] != self.pad_id).long())
        counts: list[int] = mask.sum(dim=1).tolist()
        return counts

    def save(self, folder: Path) -> None:
        """Write nothing, because code is not saved."""


def tokenizer_of(given: Any) -> Tokenizer:
    """Convert a function or a transformers tokenizer to a `Tokenizer`.

    A transformers tokenizer truncates to its `model_max_length`.

    Raises:
        ModelError: as for `PythonTokenizer`, or `given` is not a function, or `model_max_length` is missing.
    """
    from transformers import PreTrainedTokenizerBase

    if isinstance(given, PreTrainedTokenizerBase):
        limit = given.model_max_length
        if limit > MOST_TOKENS:
            raise ModelError(
                f"the tokenizer {type(given).__name__} has no model_max_length; set model_max_length to the "
                "number of positions of the text tower"
            )
        return TransformersTokenizer(given, int(limit))
    if not callable(given):
        raise ModelError(f"tokenizer is {kind_of(given)}; give a function from a list of strings to token IDs")
    return PythonTokenizer(given)
