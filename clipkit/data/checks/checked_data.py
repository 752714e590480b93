"""Input of the data rules: images and captions with their measurements."""

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
from clipkit.tasks import shortened

Scope = Literal["quick", "sampled", "full"]


@dataclass(frozen=True)
class CheckedData:
    """N images and M captions, with the measurements that the rules need.

    A rule whose measurement is missing reports nothing.
    """

    pairs: Pairs
    broken: Mapping[int, str] = field(default_factory=dict)
    """Reason why an image cannot be opened, by position of the image."""
    image_rows: Sequence[int] = ()
    """(K,) positions of the measured images."""
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """(K, 2) width and height of the measured images in pixels; 0 if unknown."""
    spreads: NDArray[np.uint8] | None = None
    """(K,) range of the pixel values of the measured images, out of 255; None: unknown."""
    image_size: int | None = None
    """Side of the model's input in pixels; None: unknown."""
    duplicates: Duplicates | None = None
    against: Pairs | None = None
    """Data that must not contain the same images, usually the validation set."""
    leaked: Mapping[int, Leak] = field(default_factory=dict)
    """Images that also occur in `against`: position in `pairs` -> position in `against`, as a `Leak`."""
    caption_rows: Sequence[int] = ()
    """(L,) positions of the measured captions."""
    token_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(L,) lengths of the measured captions in tokens."""
    context_length: int | None = None
    """Maximum number of tokens that the model reads; None: unknown."""
    batch: Mapping[str, Any] | None = None
    """Expected false negatives in a batch, as `expected_false_negatives` returns them."""
    loss_counts_duplicates: Literal["positive", "negative"] | None = None
    """Treatment of equal captions of a batch in the loss: as positives or as negatives; None: unknown."""

    @cached_property
    def captions(self) -> CaptionIndex:
        """Statistics of the captions, e.g. which captions are empty."""
        return CaptionIndex(self.pairs)

    @property
    def short_sides(self) -> NDArray[np.int32]:
        """(K,) short side of each measured image in pixels; 0 if unknown."""
        return self.sizes.min(axis=1, initial=np.iinfo(np.int32).max)

    def sized_name(self, number: int) -> str:
        """Return the name of an image with its width and height, for messages.

        `number` is the position among the measured images, not among all images.
        """
        width, height = self.sizes[number]
        return f"{self.image_name(int(self.image_rows[number]))} ({width} × {height})"

    def image_name(self, position: int) -> str:
        """Return the name of an image for messages, e.g. its path or "data.parquet, row 5"."""
        return image_name(self.pairs, position)

    def row_name(self, row: int) -> str:
        """Return the name of a caption's image for messages; without images, e.g. "row 5"."""
        return self.image_name(int(self.pairs.image_of_caption[row]))

    def caption_name(self, row: int) -> str:
        """Return a caption, shortened to 100 characters, and the name of its image, for messages."""
        return f"{shortened(repr(self.pairs.captions[row]), 100)} ({self.row_name(row)})"


@dataclass(frozen=True)
class DataRule(Rule[CheckedData]):
    """Rule about data, and when it is applied.

    Args:
        needs: "images" or "captions"; the rule is skipped if the data has none.
        scope: "full": applied only by `clipkit data check`. "quick": also applied when training starts, without opening
            images. "sampled": also applied when training starts, to a sample of the images.
    """

    needs: Literal["images", "captions"]
    scope: Scope
