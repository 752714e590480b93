"""Pictures with their captions, the one thing that every source becomes."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.table import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    NEGATIVE_COLUMNS,
    existing_pictures,
    read_table,
    split_options,
)
from clipkit.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """N pictures and M captions; a picture's position is its identity."""

    name: str
    pictures: list[Path]
    captions: list[str]
    image_of_caption: NDArray[np.int64]
    """(M,) position of each caption's picture."""
    negatives: list[str] | None = None
    """(M,) for each caption one that is wrong, where the source has them."""

    @cached_property
    def captions_of_image(self) -> list[NDArray[np.int64]]:
        """For each picture the positions of its captions, in the source's order."""
        order = np.argsort(self.image_of_caption, kind="stable")
        starts = np.searchsorted(self.image_of_caption[order], np.arange(1, len(self.pictures)))
        return np.split(order, starts)

    @cached_property
    def caption_ids(self) -> NDArray[np.int64]:
        """(M,) which caption each one is: equal strings have equal ids."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(caption, row) for row, caption in enumerate(self.captions)], dtype=np.int64)

    @cached_property
    def sha256(self) -> str:
        """Hash of the picture names and captions in order; not of the pixels."""
        digest = hashlib.sha256()
        for caption, image in zip(self.captions, self.image_of_caption, strict=True):
            digest.update(f"{self.pictures[image].name}\0{caption}\0".encode())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names and captions, as above, and of the picture files' sizes."""
        sizes = np.array([picture.stat().st_size for picture in self.pictures], dtype="<i8")
        return hashlib.sha256(self.sha256.encode() + sizes.tobytes()).hexdigest()


def checked_negatives(pairs: Pairs) -> list[str]:
    """The wrong captions, where a loss wants them.

    Raises:
        DataError: the source has none, a row lacks its own, or one is a right caption of its picture.
    """
    if pairs.negatives is None:
        raise DataError(
            f"{pairs.name}: the loss needs a column negative_caption, a wrong caption beside each; add it, or take "
            "loss.name: infonce"
        )
    right = set(zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True))
    for row, (image, wrong) in enumerate(zip(pairs.image_of_caption.tolist(), pairs.negatives, strict=True), 1):
        if not wrong:
            raise DataError(f"{pairs.name}: row {row} has no negative_caption; fill it in or drop the row")
        if (image, wrong) in right:
            raise DataError(
                f"{pairs.name}: row {row}'s negative_caption {wrong[:60]!r} is a caption of its picture; mend it"
            )
    return pairs.negatives


def read_pairs(source: str) -> Pairs:
    """Pairs from a CSV or TSV file: one row a caption; rows that name one picture are one picture.

    Args:
        source: a path; its image and caption columns are found by name or given as
            `photos.csv?image=file&caption=title`. Picture paths are relative to the file. A column negative_caption
            is read where there is one.

    Raises:
        DataError: the file, a column, a caption or a picture is missing, or the format is not known.

    Example:
        >>> read_pairs("captions.csv").captions[0]    # doctest: +SKIP
        'A black dog is running after a white dog in the snow .'
    """
    path, _ = split_options(source)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a CSV or TSV file with the columns image and caption")
    if path.suffix not in (".csv", ".tsv"):
        raise DataError(f"{source}: captions are read from .csv and .tsv files; this is neither")
    table = read_table(
        source, {"image": IMAGE_COLUMNS, "caption": CAPTION_COLUMNS}, {"negative_caption": NEGATIVE_COLUMNS}
    )
    captions = [caption.strip() for caption in table.columns["caption"]]
    if "" in captions:
        raise DataError(f"{table.path}: row {captions.index('') + 1} has no caption; fill it in or drop the row")
    position: dict[str, int] = {}
    image_of_caption = [position.setdefault(name, len(position)) for name in table.columns["image"]]
    pictures = existing_pictures(table.path, list(position))
    negatives = table.columns.get("negative_caption")
    wrong = None if negatives is None else [caption.strip() for caption in negatives]
    return Pairs(str(table.path), pictures, captions, np.array(image_of_caption, dtype=np.int64), wrong)
