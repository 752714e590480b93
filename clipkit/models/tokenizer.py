"""From strings to tokens, padded to the longest of the batch."""

from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.errors import ModelError, one_line


class Tokenizer(Protocol):
    """Strings to `input_ids` and `attention_mask` (M, L), L the longest of them, at most `context_length`."""

    context_length: int
    vocab_size: int
    pad_id: int

    @property
    def source(self) -> str | None:
        """How a recipe names it, where it is not saved with the text tower."""

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]: ...

    def save(self, folder: Path) -> None:
        """Write the files that reload it, where it has any."""


class TransformersTokenizer:
    """A tokenizer of transformers, padding on the right."""

    source = None

    def __init__(self, native: Any, context_length: int) -> None:
        self.native = native
        self.context_length = context_length
        self.vocab_size = len(native)
        self.pad_id = int(native.pad_token_id)

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        tokens = self.native(
            texts,
            padding="longest",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def save(self, folder: Path) -> None:
        self.native.save_pretrained(folder)


class OpenClipTokenizer:
    """The tokenizer of an open_clip architecture, with padding cut off and masked."""

    def __init__(self, architecture: str, context_length: int | None) -> None:
        import open_clip

        if architecture not in open_clip.list_models():
            raise ModelError(
                f"open_clip:{architecture}: open_clip has no such architecture; open_clip.list_models() names them"
            )
        self.native = open_clip.get_tokenizer(architecture)
        if not isinstance(self.native, open_clip.SimpleTokenizer):
            raise ModelError(f"open_clip:{architecture}: its tokenizer is not CLIP's own; name that one as hf:NAME")
        self.source = f"open_clip:{architecture}"
        self.context_length = context_length or int(self.native.context_length)
        self.vocab_size = int(self.native.vocab_size)
        self.pad_id = 0

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        ids = self.native(texts, context_length=self.context_length)
        # The end token has the highest id; what follows it is padding, whose id 0 is also a real token.
        lengths = ids.argmax(dim=1, keepdim=True) + 1
        longest = int(lengths.max())
        return {"input_ids": ids[:, :longest], "attention_mask": (torch.arange(longest) < lengths).long()}

    def save(self, folder: Path) -> None:
        """Nothing: it comes with the open_clip package."""


def load_tokenizer(source: str, context_length: int | None) -> Tokenizer:
    """`open_clip:ARCH`, `hf:NAME` or a folder."""
    kind, colon, name = source.partition(":")
    if colon and kind == "open_clip":
        return OpenClipTokenizer(name, context_length)
    from clipkit.models.hub import local_folder

    return transformers_tokenizer(local_folder(name if colon and kind == "hf" else source), context_length)


def transformers_tokenizer(folder: Path, context_length: int | None, positions: int | None = None) -> Tokenizer:
    """The tokenizer saved in `folder`, cut at the shortest of the lengths that are known."""
    from transformers import AutoTokenizer

    try:
        native = AutoTokenizer.from_pretrained(folder, padding_side="right")
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ModelError(f"{folder}: its tokenizer cannot be read ({one_line(error)})") from None
    if native.pad_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no padding token; add one to tokenizer_config.json")
    limits = [limit for limit in (context_length, native.model_max_length, positions) if limit]
    return TransformersTokenizer(native, int(min(limits)))
