"""Cache for the tokens of captions."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.data.shared_memory import fits_shared, shared_zeros

Tokenize = Callable[[list[str]], dict[str, Int[Tensor, "B L"]]]

# Maximum size in bytes of the shared memory; the system allocates it when captions are first used.
_MOST_BYTES = 1 << 29


class TokenStore:
    """Cache of caption tokens in memory that loader workers share. A caption is tokenized when it is first requested.

    The returned tokens are padded to the longest of the requested captions. If the tokenizer returns no attention mask,
    its padding is kept.

    Args:
        captions: M strings.
        tokenize: function from strings to `input_ids` (B, L), padded on the right, and optionally `attention_mask`.
        context_length: maximum number of tokens.
        pad_id: ID of the padding token.

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
        self._ids = shared_zeros(len(captions), context_length, dtype=torch.int32)
        self._lengths = shared_zeros(len(captions), dtype=torch.int32)
        """Number of tokens of each caption; 0: not computed yet."""

    @staticmethod
    def fits(count: int, context_length: int) -> bool:
        """Return whether there is enough memory for `count` captions of up to `context_length` tokens."""
        size = 4 * count * (context_length + 1)
        return size <= _MOST_BYTES and fits_shared(size)

    def __call__(self, rows: Sequence[int]) -> dict[str, Int[Tensor, "B L"]]:
        """Return the tokens of the captions at the positions `rows`."""
        positions = torch.tensor(rows)
        new = positions[self._lengths[positions] == 0].unique()
        if len(new):
            self._compute(new)
        lengths = self._lengths[positions]
        longest = int(lengths.max())
        ids = self._ids[positions, :longest].long()
        if not self._masked:
            return {"input_ids": ids}
        mask = torch.arange(longest) < lengths[:, None]
        return {"input_ids": ids.masked_fill(~mask, self.pad_id), "attention_mask": mask.long()}

    def _compute(self, positions: Int[Tensor, " P"]) -> None:
        tokens = self.tokenize([self.captions[position] for position in positions.tolist()])
        ids = tokens["input_ids"]
        self._ids[positions, : ids.shape[1]] = ids.int()
        # The length is written last, because it marks the tokens as complete. Two workers may write the same tokens.
        mask = tokens.get("attention_mask")
        self._lengths[positions] = (torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(dim=1)).int()
