"""CLIP's byte-pair tokenizer, which open_clip and transformers each have their own of."""

from typing import Any

from clipkit.errors import ModelError

# open_clip's name of a special token, and the one that everybody else's files have.
_SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def vocabulary(native: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids and merges of open_clip's SimpleTokenizer, by transformers' names of the special tokens."""
    ids = {_SPECIAL.get(token, token): number for token, number in native.encoder.items()}
    return ids, list(native.bpe_ranks)


def for_transformers(native: Any, context_length: int, model: str) -> Any:
    """A transformers.CLIPTokenizer with the ids of open_clip's SimpleTokenizer.

    Raises:
        ModelError: it drops words at random, or cleans its captions in another way than CLIP's.
    """
    from open_clip.tokenizer import get_clean_fn
    from transformers import CLIPTokenizer

    if native.reduction_fn is not None or native.clean_fn is not get_clean_fn("lower"):
        raise ModelError(
            f"{model}: its tokenizer cleans or drops words in a way that transformers' CLIPTokenizer cannot"
        )
    ids, merges = vocabulary(native)
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=context_length)


def is_clips(native: Any) -> bool:
    """Whether a tokenizer of transformers has the ids and merges that open_clip's package brings along."""
    import json

    import open_clip
    from transformers import CLIPTokenizer

    if not isinstance(native, CLIPTokenizer):
        return False
    ids, merges = vocabulary(open_clip.SimpleTokenizer())
    own = json.loads(native.backend_tokenizer.to_str())["model"]
    return native.get_vocab() == ids and [tuple(merge) for merge in own["merges"]] == merges
