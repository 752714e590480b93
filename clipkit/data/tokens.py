"""Captions as tokens, made once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

Tokenize = Callable[[list[str]], dict[str, Int[Tensor, "B L"]]]

# Bytes of shared memory, which fills only as captions are met.
_MOST = 1 << 29


class TokenStore:
    """Tokens of captions, each made when it is first met and kept in memory that loader workers share.

    What a tokenizer gives is kept without its padding, and padded again to the longest of those asked for, or, without
    a mask, whole.

    Args:
        captions: M strings.
        tokenize: strings to `input_ids` (B, L) and, where padding is told apart, `attention_mask`, padded on the right.
        context_length: the most that it gives.
        pad_id: what it pads with.

    Example:
        >>> def tokenize(texts: list[str]) -> dict[str, Tensor]:
        ...     return {"input_ids": torch.tensor([[len(text), 7] for text in texts])}
        >>> TokenStore(["a", "dog"], tokenize, context_length=2, pad_id=0)([1, 0])["input_ids"].tolist()
        [[3, 7], [1, 7]]
    """

    def __init__(self, captions: Sequence[str], tokenize: Tokenize, context_length: int, pad_id: int) -> None:
        self.captions = captions
        self.tokenize = tokenize
        self.pad_id = pad_id
        self._masked = "attention_mask" in tokenize([captions[0]])
        self._ids = torch.empty(len(captions), context_length, dtype=torch.int32).share_memory_()
        self._lengths = torch.zeros(len(captions), dtype=torch.int32).share_memory_()
        """0: not met yet."""

    @staticmethod
    def fits(count: int, context_length: int) -> bool:
        """Whether so many captions can be kept."""
        return 4 * count * (context_length + 1) <= _MOST

    def __call__(self, rows: Sequence[int]) -> dict[str, Int[Tensor, "B L"]]:
        """Tokens of these captions."""
        places = torch.tensor(rows)
        new = places[self._lengths[places] == 0].unique()
        if len(new):
            self._make(new)
        lengths = self._lengths[places]
        longest = int(lengths.max())
        ids = self._ids[places, :longest].long()
        if not self._masked:
            return {"input_ids": ids}
        mask = torch.arange(longest) < lengths[:, None]
        return {"input_ids": ids.masked_fill(~mask, self.pad_id), "attention_mask": mask.long()}

    def _make(self, places: Int[Tensor, " P"]) -> None:
        tokens = self.tokenize([self.captions[place] for place in places.tolist()])
        ids = tokens["input_ids"]
        self._ids[places, : ids.shape[1]] = ids.int()
        # Last: a length says that the tokens are there. Two workers may write the same ones.
        mask = tokens.get("attention_mask")
        self._lengths[places] = (torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(dim=1)).int()
