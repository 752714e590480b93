"""Fast measurements of captions, computed on Arrow columns."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Strings, first_positions

TokenCounts = Callable[[list[str]], Sequence[int]]
"""Function that counts the tokens of each string before truncation, including start and end tokens."""

# Uninformative captions, which could describe any image.
_STOCK = (
    r"(?i)^[^\pL\pN]*((a|an|the|this|is|of|my|stock|no|default|here|s)[^\pL\pN]+)*"
    r"(image|images|photo|photos|photograph|picture|pictures|pic|img|untitled|caption|captions|description|title|"
    r"alt text|alt|placeholder|thumbnail|null|none|nan|n/?a|undefined|unknown|unnamed|todo|tbd|test)"
    r"([^\pL\pN]+(of|by|from|a|an|the|is|not|available|here|credit|\d+))*[^\pL\pN]*$"
)
_FILE_NAME = (
    r"(?i)^[^\s]*\.(jpe?g|png|gif|webp|bmp|tiff?|heic|svg)$|^(img|dsc[nf]?|dcim|pict|screenshot)[-_ ]?\d{2,}\S*$"
)
_URL = r"(?i)^(https?://|www\.)\S+$"
# Scripts without spaces between words: text in these scripts does not count as a single word.
_WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# A caption is boilerplate if at least 100 images have it; in smaller datasets, 0.2 % of the images, but at least 5.
_BOILERPLATE_IMAGES, _BOILERPLATE_LEAST, _BOILERPLATE_SHARE = 100, 5, 0.002
_CHUNK = 10_000


def normalized(captions: Sequence[str]) -> pa.Array:
    """Return captions in lower case without spaces and punctuation, for comparisons.

    A caption that contains only punctuation keeps its punctuation.

    Example:
        >>> normalized(["A dog .", "a  DOG", "?!"]).to_pylist()
        ['adog', 'adog', '?!']
    """
    lower: Any = pc.utf8_lower(Strings.of(captions).column)
    bare = pc.replace_substring_regex(lower, pattern=r"[\s\p{P}\p{Z}]+", replacement="")
    return pc.if_else(pc.equal(bare, ""), lower, bare)


def lengths(captions: Sequence[str], token_counts: TokenCounts | None) -> NDArray[np.int64]:
    """Return (M,) lengths of captions in tokens, or in words if `token_counts` is None."""
    column = Strings.of(captions).column
    if token_counts is None:
        return pc.count_substring_regex(column, pattern=r"\S+").to_numpy().astype(np.int64)
    index, first = first_positions(column)
    distinct = Strings(column.take(pa.array(first)))
    counts = [
        count for start in range(0, len(distinct), _CHUNK) for count in token_counts(distinct[start : start + _CHUNK])
    ]
    return np.array(counts, dtype=np.int64)[index] if counts else np.zeros(0, np.int64)


class CaptionIndex:
    """Statistics of M captions, e.g. which captions are empty, uninformative or used for several images.

    Args:
        pairs: N images and M captions, or captions without images.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._column = Strings.of(pairs.captions).column
        self.distinct, self.first = first_positions(normalized(pairs.captions))
        """(M,) number of each caption among the K distinct normalized captions, and (K,) first row of each number."""
        self.empty = as_mask(pc.equal(self._column, ""))
        """(M,) True for empty captions."""
        self.url = ~self.empty & self._matches(_URL)
        """(M,) True for captions that are URLs."""
        self.file_name = ~self.empty & ~self.url & self._matches(_FILE_NAME)
        """(M,) True for captions that are file names; URLs are excluded."""
        self.stock = ~self.empty & ~self.url & ~self.file_name & self._matches(_STOCK)
        """(M,) True for captions that could describe any image; URLs and file names are excluded."""
        images = int(pairs.image_of_caption.max(initial=-1)) + 1
        distinct = np.unique((self.distinct * images + pairs.image_of_caption)[~self.empty])
        self.image_counts = np.bincount(distinct // max(1, images), minlength=len(self.first))
        """(K,) number of different images for each distinct caption; 0 for the empty caption."""
        self.are_classes = self._are_classes(pairs)
        """True if captions are made from class labels, or seem to be class names, each for many images."""
        ordinary = ~(self.empty | self.url | self.file_name | self.stock | self.are_classes)
        counts = self.image_counts[self.distinct]
        share = int(_BOILERPLATE_SHARE * len(pairs.images))
        self.boilerplate_images = max(_BOILERPLATE_LEAST, min(_BOILERPLATE_IMAGES, share))
        """Smallest number of different images that makes a caption boilerplate."""
        self.boilerplate = ordinary & (counts >= self.boilerplate_images) & pairs.has_images
        """(M,) True for captions that are used for many different images."""
        self.shared = ordinary & ~self.boilerplate & (counts > 1) & pairs.has_images
        """(M,) True for captions that are used for at least two images, but are not boilerplate."""
        self.one_word = ordinary & ~self.boilerplate & ~self._matches(rf"\s|{_WITHOUT_SPACES}")
        """(M,) True for captions of one word that are not boilerplate."""
        rows = np.flatnonzero(~self.empty & pairs.has_images)
        keys = pairs.image_of_caption[rows] * len(self.first) + self.distinct[rows]
        self.repeated = np.zeros(len(self.empty), bool)
        """(M,) True for captions that an earlier row has for the same image."""
        self.repeated[np.delete(rows, np.unique(keys, return_index=True)[1])] = True

    def _are_classes(self, pairs: Pairs) -> bool:
        used = self.image_counts[self.image_counts > 0]
        images = len(pairs.images)
        return pairs.classes is not None or bool(
            pairs.has_images
            and len(used) > 1
            and int((~self.empty).sum()) <= 1.1 * images
            and used[used > 1].sum() >= 0.9 * images
            and len(used) <= images / 4
        )

    def _matches(self, pattern: str) -> NDArray[np.bool_]:
        return as_mask(pc.match_substring_regex(self._column, pattern=pattern))


def as_mask(column: Any) -> NDArray[np.bool_]:
    """Convert an Arrow column of booleans to a NumPy array."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)
