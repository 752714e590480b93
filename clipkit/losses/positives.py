"""Positives and negatives of a batch in which several pairs may have the same image or caption."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.errors import BatchError
from clipkit.losses.pair_ids import PairIds

Ids = tuple[Int[Tensor, " G"], Int[Tensor, " G"]]
Duplicates = Literal["positive", "ignore", "negative"]
"""Treatment of other pairs with the same image or caption: as positives, ignored, or as negatives."""


class Positives:
    """The positives of each pair of a batch: all pairs with the same image or the same caption.

    Sums over positives are computed without a G × G mask: the sum over the pairs with the same image, plus the sum for
    the same caption, minus the sum for both.

    Args:
        image_ids: ID of each pair's image.
        caption_ids: ID of each pair's caption.
    """

    def __init__(self, image_ids: Int[Tensor, " G"], caption_ids: Int[Tensor, " G"]) -> None:
        image, caption = _ranks(image_ids), _ranks(caption_ids)
        both = _ranks(image * len(image) + caption)
        self._groups = (image, caption, both)
        self.count: Int[Tensor, " G"] = self._per_pair(torch.ones_like(image))
        """(G,) number of positives of each pair, including the pair itself."""

    def sums(self, features: Float[Tensor, "G D"]) -> Float[Tensor, "G D"]:
        """Return for each pair the sum of `features` over its positives, including the pair itself."""
        return self._per_pair(features)

    def _per_pair(self, values: Tensor) -> Tensor:
        image, caption, both = (_sums(values, group)[group] for group in self._groups)
        return image + caption - both


def _ranks(ids: Int[Tensor, " G"]) -> Int[Tensor, " G"]:
    """Return the position of each ID in the sorted list of distinct IDs."""
    # Unlike `torch.unique`, this does not make the CPU wait for the GPU.
    ordered, order = ids.sort()
    rank = torch.zeros_like(order)
    rank[1:] = (ordered[1:] != ordered[:-1]).cumsum(dim=0)
    return torch.empty_like(rank).scatter_(0, order, rank)


def _sums(values: Tensor, group: Int[Tensor, " G"]) -> Tensor:
    """Return the sum of `values` of each group, with additions in a fixed order."""
    zeros = torch.zeros_like(values)
    # On CUDA, the order of the additions of `index_add` varies.
    return zeros.index_put((group,), values, accumulate=True) if values.is_cuda else zeros.index_add(0, group, values)


def paired_ids(image_ids: Tensor | None, caption_ids: Tensor | None) -> Ids | None:
    """Return both IDs as a tuple, or None if both are None.

    Raises:
        ValueError: only one of `image_ids` and `caption_ids` is given.
    """
    if (image_ids is None) != (caption_ids is None):
        raise ValueError("only one of image_ids and caption_ids was given; give both or neither")
    return None if image_ids is None or caption_ids is None else (image_ids, caption_ids)


def other_pairs(
    image_ids: Tensor | None, caption_ids: Tensor | None, duplicates: Duplicates, rows: slice
) -> tuple[Positives | None, PairIds | None]:
    """Find the pairs of a batch that have the same image or the same caption.

    Args:
        image_ids: ID of each pair's image, or None.
        caption_ids: ID of each pair's caption, or None.
        duplicates: how to treat pairs with the same image or caption.
        rows: pairs whose terms the loss sums.

    Returns:
        Two results, which are None if no pairs have the same image or caption:

        - the positives of each pair; None if duplicates are not treated as positives.
        - the entries to leave out of the given rows of the similarity matrix; None if duplicates are not ignored.

    Raises:
        ValueError: only one of `image_ids` and `caption_ids` is given.
    """
    ids = paired_ids(image_ids, caption_ids)
    if ids is None or duplicates == "negative":
        return None, None
    ordered = torch.stack(ids).sort(dim=1).values
    if not (ordered[:, 1:] == ordered[:, :-1]).any():  # the only value for which the CPU waits
        return None, None
    if duplicates == "positive":
        return Positives(*ids), None
    position = torch.arange(len(ids[0]), device=ids[0].device)
    return None, PairIds(position[rows], position, (ids[0][rows], ids[1][rows]), ids)


class Relations:
    """Masks of the positives and the negatives of a batch, computed for a few rows at a time.

    Args:
        pairs: number of pairs G.
        image_ids: ID of each pair's image, or None.
        caption_ids: ID of each pair's caption, or None.
        duplicates: how to treat other pairs with the same image or caption.
        device: device of the masks.

    Raises:
        BatchError: no pair has a negative.
        ValueError: only one of `image_ids` and `caption_ids` is given.
    """

    def __init__(
        self,
        pairs: int,
        image_ids: Tensor | None,
        caption_ids: Tensor | None,
        duplicates: Duplicates,
        device: torch.device,
    ) -> None:
        self._ids = paired_ids(image_ids, caption_ids) or ()
        self.duplicates = duplicates if self._ids else "negative"
        self._position = torch.arange(pairs, device=device)
        shared = self._position.new_ones(pairs) if not self._ids else Positives(*self._ids).count
        one = torch.ones_like(shared)
        self.positives: Int[Tensor, " G"] = shared if self.duplicates == "positive" else one
        """(G,) number of positives of each pair, including the pair itself."""
        self.negatives: Int[Tensor, " G"] = pairs - (one if self.duplicates == "negative" else shared)
        """(G,) number of negatives of each pair."""
        check_negatives(self.negatives, image_ids, caption_ids)

    def of(self, rows: slice) -> tuple[Bool[Tensor, "R G"], Bool[Tensor, "R G"]]:
        """Return two masks for some rows and all G columns: the positives, and the negatives."""
        itself = self._position[rows, None] == self._position[None]
        if self.duplicates == "negative":
            return itself, ~itself
        shared = torch.zeros_like(itself)
        for ids in self._ids:
            shared |= ids[rows, None] == ids[None]
        return (shared if self.duplicates == "positive" else itself), ~shared


def check_negatives(negatives: Int[Tensor, " G"], image_ids: Tensor | None, caption_ids: Tensor | None) -> None:
    """Check that at least one pair of a batch has a negative.

    Args:
        negatives: number of negatives of each pair.
        image_ids: ID of each pair's image, or None.
        caption_ids: ID of each pair's caption, or None.

    Raises:
        BatchError: no pair has a negative.
    """
    without_ids = image_ids is None or caption_ids is None
    # Without IDs, each pair has G − 1 negatives; nothing must be read from the device.
    if len(negatives) > 1 if without_ids else (negatives > 0).any():
        return
    if image_ids is None or caption_ids is None:
        raise BatchError(f"a batch of {len(negatives)} pair has no negatives; use a larger train.batch_size")
    raise BatchError(
        f"the {len(negatives)} pairs of the batch have {len(image_ids.unique())} distinct images and "
        f"{len(caption_ids.unique())} distinct captions, so all pairs are positives of each other, and no pair has a "
        "negative; use a larger train.batch_size, or shuffle the data"
    )
