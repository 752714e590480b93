"""Which pairs of a batch belong together: those that share an image or a caption."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.errors import BatchError
from clipkit.losses.tiles import PairIds

Duplicates = Literal["positive", "ignore", "negative"]
"""What another pair with the same image or caption is: a positive too, nothing, or (as elsewhere) a negative."""


class Positives:
    """The positives of each pair, by counting; no G × G mask.

    Pairs with the same image, plus pairs with the same caption, minus pairs with both.

    Args:
        image_ids: the image of each pair.
        caption_ids: the caption of each pair; equal strings have equal ids.
    """

    def __init__(self, image_ids: Int[Tensor, " G"], caption_ids: Int[Tensor, " G"]) -> None:
        _, image = image_ids.unique(return_inverse=True)
        _, caption = caption_ids.unique(return_inverse=True)
        _, both = (image * len(image) + caption).unique(return_inverse=True)
        self._groups = (image, caption, both)
        self.count: Int[Tensor, " G"] = self._per_pair(torch.ones_like(image))
        """(G,) how many positives each pair has, itself among them."""

    @property
    def are_alone(self) -> bool:
        """Whether each pair is its only positive."""
        return bool((self.count == 1).all())

    def sums(self, features: Float[Tensor, "G D"]) -> Float[Tensor, "G D"]:
        """For each pair the sum of `features` over its positives."""
        return self._per_pair(features)

    def _per_pair(self, values: Tensor) -> Tensor:
        image, caption, both = (torch.zeros_like(values).index_add(0, group, values)[group] for group in self._groups)
        return image + caption - both


def other_pairs(
    image_ids: Tensor | None, caption_ids: Tensor | None, duplicates: Duplicates, rows: slice
) -> tuple[Positives | None, PairIds | None]:
    """What a loss does about pairs that share an image or a caption: count them as positives, or leave them out.

    Both are None where no pair has another one, or where they are to be negatives.

    Args:
        image_ids: the image of each pair, or None.
        caption_ids: the caption of each pair, or None.
        duplicates: what such pairs are.
        rows: the rows whose terms are counted; what is left out is for tiles of these against all columns.

    Raises:
        ValueError: one kind of ids without the other.
    """
    if (image_ids is None) != (caption_ids is None):
        raise ValueError("image_ids and caption_ids belong together: give both or none")
    if image_ids is None or caption_ids is None or duplicates == "negative":
        return None, None
    positives = Positives(image_ids, caption_ids)
    if positives.are_alone:
        return None, None
    if duplicates == "positive":
        return positives, None
    position = torch.arange(len(image_ids), device=image_ids.device)
    left_out = PairIds(position[rows], position, (image_ids[rows], caption_ids[rows]), (image_ids, caption_ids))
    return None, left_out


class Relations:
    """Which combinations of a batch are positives and which negatives, a band of rows at a time.

    Args:
        pairs: G.
        image_ids: the image of each pair, or None.
        caption_ids: the caption of each pair, or None.
        duplicates: what other pairs with the same image or caption are.
        device: of the features.

    Raises:
        BatchError: no pair has a negative.
        ValueError: one kind of ids without the other.
    """

    def __init__(
        self,
        pairs: int,
        image_ids: Tensor | None,
        caption_ids: Tensor | None,
        duplicates: Duplicates,
        device: torch.device,
    ) -> None:
        if (image_ids is None) != (caption_ids is None):
            raise ValueError("image_ids and caption_ids belong together: give both or none")
        self._ids = () if image_ids is None or caption_ids is None else (image_ids, caption_ids)
        self.duplicates = duplicates if self._ids else "negative"
        self._position = torch.arange(pairs, device=device)
        shared = self._position.new_ones(pairs) if not self._ids else Positives(*self._ids).count
        own = torch.ones_like(shared)
        self.positives: Int[Tensor, " G"] = shared if self.duplicates == "positive" else own
        """(G,) how many positives each pair has, itself among them."""
        self.negatives: Int[Tensor, " G"] = pairs - (own if self.duplicates == "negative" else shared)
        """(G,) how many negatives each pair has."""
        check_negatives(self.negatives, image_ids, caption_ids)

    def of(self, rows: slice) -> tuple[Bool[Tensor, "R G"], Bool[Tensor, "R G"]]:
        """Positives and negatives of these pairs among all."""
        itself = self._position[rows, None] == self._position[None]
        if self.duplicates == "negative":
            return itself, ~itself
        shared = torch.zeros_like(itself)
        for ids in self._ids:
            shared |= ids[rows, None] == ids[None]
        return (shared if self.duplicates == "positive" else itself), ~shared


def check_negatives(negatives: Int[Tensor, " G"], image_ids: Tensor | None, caption_ids: Tensor | None) -> None:
    """Refuse a batch in which no pair has a negative.

    Raises:
        BatchError: names what the batch is made of.
    """
    if (negatives > 0).any():
        return
    if image_ids is None or caption_ids is None:
        raise BatchError(f"a batch of {len(negatives)} pair has no negatives; take a larger train.batch_size")
    raise BatchError(
        f"the batch's {len(negatives)} pairs are of {len(image_ids.unique())} images and {len(caption_ids.unique())} "
        "captions that all belong together, so none is a negative of another; take a larger train.batch_size, or mix "
        "the data"
    )
