"""Input of the rules about data: pairs and their measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipkit.data.checks.captions import CaptionIndex
from clipkit.data.checks.duplicates import Duplicates
from clipkit.data.checks.leaks import Leak, image_name
from clipkit.data.pairs import Pairs
from clipkit.findings import Rule

Scope = Literal["quick", "sampled", "full"]


@dataclass(frozen=True)
class CheckedData:
    """N images and M captions with their measurements; a rule whose measurement is missing finds nothing."""

    pairs: Pairs
    broken: Mapping[int, str] = field(default_factory=dict)
    """Position of an image -> reason why it cannot be opened."""
    image_rows: Sequence[int] = ()
    """(K,) positions of the images that were measured."""
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """(K, 2) their width and height in pixels; 0 where unknown."""
    image_size: int | None = None
    """Side of the model's input in pixels."""
    duplicates: Duplicates | None = None
    against: Pairs | None = None
    """Data that must not be among the pairs, usually the validation set."""
    leaked: Mapping[int, Leak] = field(default_factory=dict)
    """Position of an image -> the same image in `against`."""
    caption_rows: Sequence[int] = ()
    """(L,) positions of the captions that were measured."""
    token_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(L,) their lengths in tokens."""
    context_length: int | None = None
    """Largest number of tokens that the model reads."""
    batch: Mapping[str, Any] | None = None
    """False negatives to expect in a batch, from `expected_false_negatives`."""
    loss_counts_duplicates: Literal["positive", "negative"] | None = None
    """How the loss treats equal captions of a batch; None: unknown."""

    @cached_property
    def captions(self) -> CaptionIndex:
        """Index of the captions."""
        return CaptionIndex(self.pairs)

    @property
    def short_sides(self) -> NDArray[np.int32]:
        """(K,) short sides of the measured images in pixels; 0 where unknown."""
        return self.sizes.min(axis=1, initial=np.iinfo(np.int32).max)

    def sized_name(self, number: int) -> str:
        """Return the name of a measured image with its width and height."""
        width, height = self.sizes[number]
        return f"{self.image_name(int(self.image_rows[number]))} ({width} × {height})"

    def image_name(self, position: int) -> str:
        """Return the image's path as the source names it, or a description of where it is stored."""
        return image_name(self.pairs, position)

    def row_name(self, row: int) -> str:
        """Return the name of a caption's image; the row's number if there are no images."""
        return self.image_name(int(self.pairs.image_of_caption[row]))

    def caption_name(self, row: int) -> str:
        """Return a caption, shortened, with the name of its image."""
        return f"{self.pairs.captions[row]!r:.100} ({self.row_name(row)})"


@dataclass(frozen=True)
class DataRule(Rule[CheckedData]):
    """A rule about data.

    Args:
        needs: what the pairs must have.
        scope: where it is applied besides `clipkit data check`. quick: before training, without opening an image;
            sampled: before training, on a sample; full: nowhere else.
    """

    needs: Literal["images", "captions"]
    scope: Scope
