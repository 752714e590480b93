"""Detection of images that occur in two datasets, e.g. training and validation data."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from clipkit.data.checks.duplicates import Duplicates, find_duplicates
from clipkit.data.checks.scan import ImageScan
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Files
from clipkit.data.sources.remote import fetch_ahead
from clipkit.errors import DataError
from clipkit.images import Stored, read_image, size_of

_UNKNOWN = -1  # size of an image at a URL, which is unknown before the download


@dataclass(frozen=True)
class Leak:
    """An image of another dataset that is the same as an image of the checked dataset, or looks the same."""

    position: int
    """Position of the image in the other dataset."""
    exact: bool
    """True if the files have the same bytes, False if the images only look the same."""

    def describe(self, against: Pairs) -> str:
        """Return "= " or "~ " and the name of the image in the other dataset, for messages.

        "=" means that the images have the same bytes, and "~" that they only look the same.
        """
        return f"{'=' if self.exact else '~'} {image_name(against, self.position)}"


def image_name(pairs: Pairs, position: int) -> str:
    """Return the name of an image for messages, e.g. its path or "data.parquet, row 5"."""
    return pairs.images.names[position] if isinstance(pairs.images, Files) else str(pairs.images[position])


def find_leaks(scan: ImageScan, other: ImageScan) -> tuple[Duplicates, dict[int, Leak]]:
    """Find duplicates within `scan`, and images of `scan` that also occur in `other` (position -> `Leak`)."""
    count = len(scan)
    both = find_duplicates(scan.followed_by(other))
    exact: dict[int, int] = {}  # first image with some content -> position of this content in the other dataset
    for position in range(count, len(both.first)):
        exact.setdefault(int(both.first[position]), position - count)
    near: dict[int, int] = {}
    for pair in both.near_pairs.tolist():
        for image, neighbor in (pair, pair[::-1]):
            if image < count and neighbor in exact:
                near.setdefault(image, exact[neighbor])
    leaks: dict[int, Leak] = {}
    for position, first in enumerate(both.first[:count].tolist()):
        if first in exact:
            leaks[position] = Leak(exact[first], exact=True)
        elif first in near:
            leaks[position] = Leak(near[first], exact=False)
    inside = both.near_pairs[(both.near_pairs < count).all(axis=1)]
    return Duplicates(both.first[:count], inside), leaks


def find_exact_leaks(pairs: Pairs, against: Pairs) -> dict[int, Leak]:
    """Find images of `pairs` with the same bytes as an image of `against` (position -> `Leak`)."""
    sizes = {size_of(image) for image in against.images}
    candidates = {position: size for position, image in enumerate(pairs.images) if (size := size_of(image)) in sizes}
    wanted = set(candidates.values())
    if _UNKNOWN in wanted:  # both datasets have images at URLs
        fetch_ahead(pairs.images, progress=True)
    position_of: dict[bytes, int] = {}
    for position, image in enumerate(against.images):
        if size_of(image) in wanted and (content := _digest(image)) is not None:
            position_of.setdefault(content, position)
    leaks: dict[int, Leak] = {}
    for position in candidates:
        content = _digest(pairs.images[position])
        if content in position_of:
            leaks[position] = Leak(position_of[content], exact=True)
    return leaks


def _digest(image: Path | Stored) -> bytes | None:
    try:
        return hashlib.sha256(read_image(image)).digest()
    except (OSError, DataError):
        return None
