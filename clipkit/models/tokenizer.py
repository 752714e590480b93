"""Tokenizers, which convert strings to token IDs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.errors import ModelError, one_line
from clipkit.files import write_whole
from clipkit.models.clip_bpe import ClipBpe
from clipkit.models.hub import local_folder
from clipkit.models.quiet import without_root_messages
from clipkit.parsing import parse_json
from clipkit.run_files import read_object

# Names of vocabulary files that some tokenizers read although their class does not list them.
_VOCABULARY = r"^(vocab|tokenizer)\b(?!_config).*|\.(model|spm|bpe|tiktoken)$"

MOST_TOKENS = 1_000_000
"""Largest context length; transformers gives 1e30 to tokenizers without a maximum."""


class Tokenizer(Protocol):
    """Interface of tokenizers, which convert M strings to `input_ids` (M, L).

    If the tower uses a mask, the result also contains `attention_mask` (M, L). L is the length of the longest string if
    padding may be removed, otherwise `context_length`. Strings longer than `context_length` are truncated.
    """

    context_length: int
    vocab_size: int
    """Largest ID plus one: the number of embeddings that the tower needs."""
    pad_id: int

    @property
    def source(self) -> str | None:
        """Name by which a recipe can load the tokenizer, or None if the tokenizer is saved with the text tower."""

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]: ...

    def count(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each string before truncation, including start and end tokens."""

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer, if it has any."""


class TransformersTokenizer:
    """Transformers tokenizer that pads on the right.

    Args:
        native: transformers tokenizer.
        context_length: maximum number of tokens. Longer strings are truncated.
        fixed: True always pads to `context_length`, for towers whose features depend on padding.
        mask: True also returns an attention mask. Towers that attend to padding have no mask input.
        lower: True converts strings to lower case first, as SigLIP 2 requires.
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
        self.vocab_size = 1 + max(native.get_vocab().values())
        self.pad_id = int(native.pad_token_id)

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        tokens = self.native(
            self._lowered(texts),
            padding="max_length" if self.fixed else "longest",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=self.mask,
            return_tensors="pt",
        )
        names = ["input_ids", "attention_mask"] if self.mask else ["input_ids"]
        return {name: tokens[name] for name in names}

    def _lowered(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self.lower else texts

    def count(self, texts: list[str]) -> list[int]:
        return _lengths(self.native, self._lowered(texts))

    def save(self, folder: Path) -> None:
        """Save the tokenizer so that transformers creates the same tokens from the files without further options."""
        if not self.mask:
            self.native.model_input_names = ["input_ids"]
            self.native.init_kwargs["model_input_names"] = ["input_ids"]
        self.native.save_pretrained(folder)
        if self.lower:  # the class of transformers that lowercases and then uses the same tokenizer
            file = folder / "tokenizer_config.json"
            config = parse_json(file.read_text(encoding="utf-8")) | {"tokenizer_class": "Siglip2Tokenizer"}
            write_whole(file, json.dumps(config, indent=2) + "\n")


class OpenClipTokenizer:
    """Wrapper of an open_clip tokenizer.

    Args:
        native: open_clip tokenizer.
        source: name by which a recipe can load the tokenizer, or None.
        context_length: maximum number of tokens. Longer strings are truncated.
        padding: ID of the padding token. Unneeded padding is removed, and the rest is masked. None for towers that
            attend to padding.
    """

    lower = False

    def __init__(self, native: Any, source: str | None, context_length: int, padding: int | None) -> None:
        self.native = native
        self.source = source
        self.context_length = context_length
        self.padding = padding
        self.bpe = ClipBpe(native) if padding in (None, 0) and ClipBpe.supports(native) else None
        inner = self.inner
        self.vocab_size = 1 + max(inner.get_vocab().values()) if inner is not None else int(native.vocab_size)
        self.pad_id = padding or 0
        # transformers' CLIP tokenizer pads with the end token.
        end = getattr(native if inner is None else inner, "eos_token_id", None)
        self.end_is_padding = padding is not None and end == padding

    @property
    def inner(self) -> Any:
        """The transformers tokenizer inside the open_clip tokenizer, or None for CLIP's original tokenizer."""
        return getattr(self.native, "tokenizer", None)

    def __call__(self, texts: list[str]) -> dict[str, Int[Tensor, "M L"]]:
        if self.bpe is not None:
            ids, real = map(torch.from_numpy, self.bpe.padded(texts, self.context_length, self.padding is not None))
            return {"input_ids": ids} if self.padding is None else {"input_ids": ids, "attention_mask": real.long()}
        ids = self.native(texts, context_length=self.context_length)
        if self.padding is None:
            return {"input_ids": ids}
        # A real token may have the ID of the padding, e.g. 0 in CLIP, so only the last tokens of a row are padding.
        real = (ids != self.padding).flip(1).cummax(dim=1).values.flip(1)
        if self.end_is_padding:  # the first of these is the end token
            real = torch.cat([torch.ones_like(real[:, :1]), real[:, :-1]], dim=1)
        longest = max(1, int(real.sum(dim=1).max()))
        return {"input_ids": ids[:, :longest], "attention_mask": real[:, :longest].long()}

    def count(self, texts: list[str]) -> list[int]:
        if self.bpe is not None:
            return self.bpe.count(texts)
        if self.inner is None:
            return [len(self.native.encode(text)) + 2 for text in texts]
        return _lengths(self.inner, [self.native.clean_fn(text) for text in texts])

    def save(self, folder: Path) -> None:
        """Write the files of the inner transformers tokenizer, if there is one.

        CLIP's original tokenizer is part of open_clip and needs no files.
        """
        if self.inner is not None:
            self.native.save_pretrained(folder)


def _lengths(native: Any, texts: list[str]) -> list[int]:
    ids = native(texts, truncation=False, padding=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(row) for row in ids]


def load_tokenizer(source: str, context_length: int | None) -> Tokenizer:
    """Load a tokenizer for a text tower that a recipe names.

    Args:
        source: `open_clip:ARCH`, `hf:NAME` or a folder.
        context_length: maximum number of tokens; None: the maximum of the tokenizer.
    """
    library, colon, name = source.partition(":")
    if colon and library == "open_clip":
        return _clip_bpe(name, context_length)
    folder = local_folder(name if colon and library == "hf" else source, model_types=())
    return transformers_tokenizer(folder, context_length)


def _clip_bpe(architecture: str, context_length: int | None) -> OpenClipTokenizer:
    import open_clip

    if architecture not in open_clip.list_models():
        raise ModelError(
            f"open_clip:{architecture}: is not an architecture of open_clip; use one of open_clip.list_models()"
        )
    with without_root_messages():
        native = open_clip.get_tokenizer(architecture)
    if not isinstance(native, open_clip.SimpleTokenizer):
        raise ModelError(f"open_clip:{architecture}: does not use CLIP's tokenizer; give its tokenizer as hf:NAME")
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
    """Load the transformers tokenizer of a folder.

    The context length is the smallest of `context_length`, `positions` and the tokenizer's `model_max_length`.

    Args:
        folder: folder of the tokenizer.
        context_length: maximum number of tokens; None: only the other two limits apply.
        positions: maximum number of tokens that the encoder supports; None: unknown.
        fixed, mask: as for `TransformersTokenizer`.

    Raises:
        ModelError: the tokenizer is incomplete or invalid, or contains code.
    """
    from transformers import AutoTokenizer

    refuse_code(folder / "tokenizer_config.json")
    try:
        native = AutoTokenizer.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    except Exception as error:  # libraries raise errors of many kinds
        has_pairs = (folder / "vocab.json").is_file()
        _check_files(folder, {"vocab_file": "vocab.json", "merges_file": "merges.txt"} if has_pairs else {})
        raise ModelError(
            f"{folder}: its tokenizer cannot be read ({one_line(error)}); use the tokenizer files of the base model"
        ) from None
    if type(native).vocab_files_names:  # a tokenizer of bytes has no vocabulary file
        _check_files(folder, type(native).vocab_files_names)
    if native.pad_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no padding token; add pad_token to tokenizer_config.json")
    limits = [limit for limit in (context_length, native.model_max_length, positions) if limit]
    if min(limits) > MOST_TOKENS:
        raise ModelError(
            f"{folder}: its tokenizer has no model_max_length; set model_max_length in tokenizer_config.json, or "
            "model.text.context_length in a recipe, to the context length of the encoder"
        )
    return TransformersTokenizer(native, int(min(limits)), fixed=fixed, mask=mask)


def _check_files(folder: Path, names: Mapping[str, str]) -> None:
    """Check that a folder contains a vocabulary; without one, transformers builds a tokenizer without words.

    A vocabulary is a `tokenizer.json`, or all vocabulary files of the tokenizer's class. `names` has their file names
    by kind, e.g. `vocab_file`.

    Raises:
        ModelError: the vocabulary is missing or incomplete.
    """
    found = {path.name for path in folder.iterdir() if path.is_file()}
    if names.get("tokenizer_file", "tokenizer.json") in found:
        return
    needed = [names[kind] for kind in ("vocab_file", "merges_file") if kind in names]
    if found & {*needed} or any(re.search(_VOCABULARY, name) for name in found):
        missing = [name for name in needed[1:] if name not in found and needed[0] in found]
    else:
        missing = ["tokenizer.json", *(needed or ["vocab.txt"])]
    if missing:
        raise ModelError(
            f"{folder}: has no {' or '.join(missing)}, so its tokenizer would have no words; copy the tokenizer files "
            "of the base model into the folder"
        )


def refuse_code(config: Path) -> None:
    """Raise ModelError if a tokenizer configuration requests custom code."""
    if "auto_map" in read_object(config):
        raise ModelError(f"{config}: asks to run custom code (auto_map), which clipkit never does; remove auto_map")
