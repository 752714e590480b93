"""Faster implementation of CLIP's tokenizer, with the same IDs as open_clip's `SimpleTokenizer`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

_BYTES = 8  # of each ID
# Largest length of a word that is cached (longer words hardly ever repeat), and largest number of words in the cache.
_LONGEST_WORD = 64
_MOST_WORDS = 200_000


class ClipBpe:
    """Fast CLIP tokenizer that caches the token IDs of each word.

    Args:
        native: a `SimpleTokenizer` for which `supports` is true. It encodes the words that are not in the cache.
    """

    def __init__(self, native: Any) -> None:
        from open_clip.tokenizer import get_clean_fn

        self.native = native
        self.words = _Words(native)
        self.only_lowers = native.clean_fn is get_clean_fn("lower")
        self.start, self.end = (_as_bytes([token]) for token in native.all_special_ids)

    @staticmethod
    def supports(native: Any) -> bool:
        """Return whether a tokenizer is CLIP's original one, without extra special tokens or random truncation."""
        from open_clip import SimpleTokenizer

        return type(native) is SimpleTokenizer and native.reduction_fn is None and len(native.all_special_ids) == 2

    def padded(
        self, texts: Sequence[str], context_length: int, cut: bool = True
    ) -> tuple[Int[np.ndarray, "M L"], Bool[np.ndarray, "M L"]]:
        """Return token IDs, padded with 0 on the right, and a mask that is False at padding.

        Args:
            texts: M strings.
            context_length: maximum number of tokens. A truncated text still ends with the end token.
            cut: True pads to the longest text; False pads to `context_length`.
        """
        most = _BYTES * (context_length - 1)
        rows = [(self.start + self._ids(text))[:most] + self.end for text in texts]
        lengths = np.array([len(row) for row in rows], dtype=np.int64) // _BYTES
        real = np.arange(lengths.max(initial=1) if cut else context_length) < lengths[:, None]
        ids = np.zeros(real.shape, dtype=np.int64)
        ids[real] = np.frombuffer(b"".join(rows), dtype=np.int64)
        return ids, real

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation, including start and end tokens."""
        return [len(self._ids(text)) // _BYTES + 2 for text in texts]

    def _ids(self, text: str) -> bytes:
        # Words can be encoded separately: SimpleTokenizer's pattern matches no spaces and does not depend on the text
        # around a match. Printable ASCII characters need no repair, and only an ampersand starts an HTML entity.
        is_clean = self.only_lowers and text.isascii() and text.isprintable() and "&" not in text
        cleaned = text.lower() if is_clean else self.native.clean_fn(text)
        return b"".join(map(self.words.__getitem__, cleaned.split()))


class _Words(dict[str, bytes]):
    """Dict from cleaned words to their token IDs, stored as int64 bytes.

    A missing word is encoded on first use.
    """

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native = native

    def __missing__(self, word: str) -> bytes:
        native = self.native
        ids: list[int] = []
        for piece in native.pat.findall(word):
            letters = "".join(native.byte_encoder[byte] for byte in piece.encode())
            ids += (native.encoder[token] for token in native.bpe(letters).split(" "))
        encoded = _as_bytes(ids)
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = encoded
        return encoded


def _as_bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int64).tobytes()
