"""From strings to tokens, padded to the longest of the batch where a tower allows it."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.errors import ModelError, one_line
from clipkit.models.quiet import without_root_messages


class Tokenizer(Protocol):
    """Strings to `input_ids` (M, L) and, where padding may be cut, `attention_mask` (M, L).

    With a mask L is the longest of them, at most `context_length`; without one it always is `context_length`.
    """

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
    """A tokenizer of transformers, padding on the right.

    Args:
        native: transformers' own.
        context_length: longest in tokens; what is longer is cut.
        fixed: always pad to `context_length`, for towers that look at the padding.
        mask: give the mask; those of transformers that look at the padding are not told which it is.
        lower: lowercase first; of Gemma's, which SigLIP 2 takes.
    """

    source = None

    def __init__(
        self, native: Any, context_length: int, *, fixed: bool = False, mask: bool = True, lower: bool = False
    ) -> None:
        self.native = native
        self.context_length = context_length
        self.fixed = fixed
        self.mask = mask
        self.lower = lower
        self.vocab_size = len(native)
        self.pad_id = int(native.pad_token_id)

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        tokens = self.native(
            [text.lower() for text in texts] if self.lower else texts,
            padding="max_length" if self.fixed else "longest",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=self.mask,
            return_tensors="pt",
        )
        wanted = ["input_ids", "attention_mask"] if self.mask else ["input_ids"]
        return {name: tokens[name] for name in wanted}

    def save(self, folder: Path) -> None:
        """Files with which transformers, its pipelines too, makes the same tokens without being told how."""
        if not self.mask:
            self.native.model_input_names = ["input_ids"]
            self.native.init_kwargs["model_input_names"] = ["input_ids"]
        self.native.save_pretrained(folder)
        if self.lower:  # the same tokenizer by the name under which transformers lowercases first
            file = folder / "tokenizer_config.json"
            config = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "Siglip2Tokenizer"}
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class OpenClipTokenizer:
    """A tokenizer of open_clip.

    Args:
        native: open_clip's own.
        source: how a recipe names it.
        context_length: longest in tokens.
        padding: id of the tokens that are cut off and masked; None: nothing is, for towers that look at the padding.
    """

    def __init__(self, native: Any, source: str | None, context_length: int, padding: int | None) -> None:
        self.native = native
        self.source = source
        self.context_length = context_length
        self.padding = padding
        inner = getattr(native, "tokenizer", native)  # transformers' own, inside of open_clip's
        self.vocab_size = len(inner) if inner is not native else int(native.vocab_size)
        self.pad_id = padding or 0
        # As transformers' CLIP tokenizer has it.
        self.end_is_padding = padding is not None and getattr(inner, "eos_token_id", None) == padding

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        ids = self.native(texts, context_length=self.context_length)
        if self.padding is None:
            return {"input_ids": ids}
        # The padding's id may be that of a real token too, as CLIP's 0: only what stands at the end is padding.
        real = (ids != self.padding).flip(1).cummax(dim=1).values.flip(1)
        if self.end_is_padding:  # the first of them is the end token
            real = torch.cat([torch.ones_like(real[:, :1]), real[:, :-1]], dim=1)
        longest = max(1, int(real.sum(dim=1).max()))
        return {"input_ids": ids[:, :longest], "attention_mask": real[:, :longest].long()}

    def save(self, folder: Path) -> None:
        """The files of transformers' tokenizer inside, where there is one; open_clip's own comes with the package."""
        if hasattr(self.native, "tokenizer"):
            self.native.save_pretrained(folder)


def load_tokenizer(source: str, context_length: int | None) -> Tokenizer:
    """`open_clip:ARCH`, `hf:NAME` or a folder, for a composed model."""
    kind, colon, name = source.partition(":")
    if colon and kind == "open_clip":
        return _clip_bpe(name, context_length)
    from clipkit.models.hub import local_folder

    folder = local_folder(name if colon and kind == "hf" else source, model_types=())
    return transformers_tokenizer(folder, context_length)


def _clip_bpe(architecture: str, context_length: int | None) -> OpenClipTokenizer:
    import open_clip

    if architecture not in open_clip.list_models():
        raise ModelError(
            f"open_clip:{architecture}: open_clip has no such architecture; open_clip.list_models() names them"
        )
    with without_root_messages():
        native = open_clip.get_tokenizer(architecture)
    if not isinstance(native, open_clip.SimpleTokenizer):
        raise ModelError(f"open_clip:{architecture}: its tokenizer is not CLIP's own; name that one as hf:NAME")
    length = context_length or int(native.context_length or 77)
    return OpenClipTokenizer(native, f"open_clip:{architecture}", length, padding=0)


def transformers_tokenizer(
    folder: Path,
    context_length: int | None,
    positions: int | None = None,
    *,
    fixed: bool = False,
    mask: bool = True,
) -> TransformersTokenizer:
    """The tokenizer saved in `folder`, cut at the shortest of the lengths that are known."""
    from transformers import AutoTokenizer

    refuse_code(folder / "tokenizer_config.json")
    try:
        native = AutoTokenizer.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ModelError(f"{folder}: its tokenizer cannot be read ({one_line(error)})") from None
    if native.pad_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no padding token; add one to tokenizer_config.json")
    limits = [limit for limit in (context_length, native.model_max_length, positions) if limit]
    return TransformersTokenizer(native, int(min(limits)), fixed=fixed, mask=mask)


def refuse_code(config: Path) -> None:
    """Code that comes with a model is never run, also where the class would be found without it."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(values, dict) and "auto_map" in values:
        raise ModelError(
            f"{config}: wants to run code of its own (auto_map), which clipkit never does; remove the entry"
        )
