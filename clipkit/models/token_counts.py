"""How long captions are for a model, before they are cut."""

from collections.abc import Callable
from typing import Any

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.tokenizer import OpenClipTokenizer, TransformersTokenizer


def token_counter(model: DualEncoder) -> Callable[[list[str]], list[int]]:
    """A function from M strings to how many tokens each has, with those at its start and end, uncut.

    Raises:
        ModelError: the model reads no text.

    Example:
        >>> token_counter(load("openai/clip-vit-base-patch32"))(["a dog"])    # doctest: +SKIP
        [4]
    """
    tokenizer = model.text.tokenize
    if isinstance(tokenizer, TransformersTokenizer):
        lower = tokenizer.lower
        return lambda texts: _lengths(tokenizer.native, [text.lower() for text in texts] if lower else texts)
    if isinstance(tokenizer, OpenClipTokenizer):
        inner = getattr(tokenizer.native, "tokenizer", None)
        if inner is not None:
            clean = tokenizer.native.clean_fn
            return lambda texts: _lengths(inner, [clean(text) for text in texts])
        return lambda texts: [len(tokenizer.native.encode(text)) + 2 for text in texts]
    raise ModelError(f"{model.name}: reads no captions, so it has no tokens to count; name a model of both")


def _lengths(native: Any, texts: list[str]) -> list[int]:
    ids = native(texts, truncation=False, padding=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(own) for own in ids]
