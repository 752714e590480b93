"""Conversion of a model's tokenizer to a transformers tokenizer, for exports."""

import json
from typing import Any

from clipkit.errors import ModelError
from clipkit.models.tokenizer import OpenClipTokenizer, Tokenizer

# open_clip's names of the special tokens -> the names in all other files.
_SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def as_transformers(tokenizer: Tokenizer, model: str) -> Any:
    """Return a transformers tokenizer that gives the same token IDs as a model's tokenizer.

    Args:
        tokenizer: tokenizer of the model.
        model: name of the model, for errors.

    Raises:
        ModelError: the tokenizer changes captions in a way that transformers tokenizers do not support.
    """
    if not isinstance(tokenizer, OpenClipTokenizer):
        native: Any = tokenizer
        return native.native
    if tokenizer.inner is None:
        return _clip_tokenizer(tokenizer.native, tokenizer.context_length, model)
    return _with_cleaning(tokenizer.native, tokenizer.context_length, model)


def padding_token(tokenizer: Tokenizer) -> tuple[str, int]:
    """Return the padding token and its ID."""
    native: Any = tokenizer
    if isinstance(tokenizer, OpenClipTokenizer):
        if tokenizer.inner is None:  # open_clip's SimpleTokenizer pads with token 0
            return tokenizer.native.decoder[0], 0
        return tokenizer.inner.pad_token, tokenizer.inner.pad_token_id
    return native.native.pad_token, native.native.pad_token_id


def is_clip_tokenizer(native: Any) -> bool:
    """Return whether a transformers tokenizer has the same token IDs and merges as open_clip's SimpleTokenizer."""
    import open_clip
    from transformers import CLIPTokenizer

    if not isinstance(native, CLIPTokenizer):
        return False
    ids, merges = _vocabulary(open_clip.SimpleTokenizer())
    model = json.loads(native.backend_tokenizer.to_str())["model"]
    return native.get_vocab() == ids and [tuple(merge) for merge in model["merges"]] == merges


def _vocabulary(native: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the token IDs and merges of a SimpleTokenizer, with transformers' names for special tokens."""
    ids = {_SPECIAL.get(token, token): number for token, number in native.encoder.items()}
    return ids, list(native.bpe_ranks)


def _clip_tokenizer(native: Any, context_length: int, model: str) -> Any:
    """Convert a SimpleTokenizer of open_clip to a CLIPTokenizer of transformers with the same token IDs."""
    from open_clip.tokenizer import get_clean_fn
    from transformers import CLIPTokenizer

    if native.reduction_fn is not None or native.clean_fn is not get_clean_fn("lower"):
        raise ModelError(
            f"{model}: the tokenizer cleans or drops words in a way that transformers' CLIPTokenizer "
            "does not support; use another format"
        )
    ids, merges = _vocabulary(native)
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=context_length)


def _with_cleaning(native: Any, context_length: int, model: str) -> Any:
    """Return the transformers tokenizer inside open_clip's HFTokenizer, with the same text cleaning added."""
    from open_clip.tokenizer import get_clean_fn
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast

    if native.strip_sep_token or native.tokenizer_mode:
        raise ModelError(
            f"{model}: the tokenizer changes tokens after tokenization, which transformers' tokenizers "
            "do not support; use another format"
        )
    inner = native.tokenizer
    steps: list[Any] = []
    if native.clean_fn is get_clean_fn("canonicalize"):
        steps = [
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~]"""), ""),
        ]
    if native.clean_fn is not get_clean_fn("whitespace"):
        steps += [normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    inner.model_max_length = context_length
    inner.padding_side = "right"
    if not steps:
        return inner
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{model}: the tokenizer {type(inner).__name__} has no tokenizer.json, in which the cleaning of captions "
            "could be stored; use --to open_clip"
        )
    existing = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([*steps, *existing])
    special = {name: value for name, value in inner.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=context_length, padding_side="right", **special
    )
