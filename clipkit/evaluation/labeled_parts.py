"""Training, validation and test parts of labeled images."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data import LabeledImages, read_labeled
from clipkit.errors import DataError
from clipkit.images import Stored

_HELD_OUT = 0.2  # share of each class that is held out
_FEW_SHOT_VALIDATION = 4  # largest number of validation images per class (Zhou et al. 2022, CoOp)
_NOT_LEARNED = "which has no training images; give training images of every class"


@dataclass(frozen=True)
class LabeledPart:
    """A set of labeled images, with the class position and the content hash of each image."""

    images: list[Path | Stored]
    labels: NDArray[np.int64]
    hashes: list[bytes]

    @classmethod
    def of(cls, labeled: LabeledImages, classes: list[str], hashes: list[bytes]) -> "LabeledPart":
        """Create a part with all images. Labels become positions in the list `classes`.

        Raises:
            DataError: the class of an image is not in `classes`.
        """
        position = labeled.positions_in(classes, _NOT_LEARNED)
        return cls(labeled.images, position[labeled.labels], hashes)

    def take(self, rows: NDArray[np.bool_]) -> "LabeledPart":
        """Return the images for which the mask `rows` is True."""
        chosen = rows.nonzero()[0]
        return LabeledPart(
            [self.images[row] for row in chosen], self.labels[rows], [self.hashes[row] for row in chosen]
        )


def read_single_label(data: object) -> LabeledImages:
    """Read labeled images and check that each has exactly one class.

    Raises:
        DataError: the data cannot be read, or an image has several classes.
    """
    labeled = data if isinstance(data, LabeledImages) else read_labeled(data)
    if not labeled.several:
        return labeled
    other = np.flatnonzero(labeled.labels.sum(axis=1) != 1)
    if len(other):
        raise DataError(
            f"{labeled.name}: {len(other)} of {len(labeled.images)} images have no class or several classes, e.g. "
            f"{labeled.images[other[0]]}; correct or remove these rows, because a linear probe needs exactly one class "
            "per image"
        )
    return replace(labeled, labels=labeled.labels.argmax(axis=1))


def held_out(whole: LabeledPart, classes: list[str], seed: int) -> NDArray[np.bool_]:
    """Return a mask of held-out images: a fifth of the images of each class, but at least one.

    Files with equal content are held out together. The choice does not depend on the order of the images.

    Raises:
        DataError: a class has fewer than two different images.
    """
    class_of = {
        digest: label for label, digest in sorted(zip(whole.labels.tolist(), whole.hashes, strict=True), reverse=True)
    }
    out: set[bytes] = set()
    for label, name in enumerate(classes):
        contents = sorted(digest for digest, of_label in class_of.items() if of_label == label)
        if len(contents) < 2:
            raise DataError(
                f"class {name!r} has too few different images ({len(contents)}) to hold one out; give at "
                "least three different images per class (for training, validation and test), or two if you give test "
                "images with --test"
            )
        order = np.random.default_rng(seed).permutation(len(contents))
        out |= {contents[index] for index in order[: max(1, round(_HELD_OUT * len(contents)))]}
    return np.array([digest in out for digest in whole.hashes])


def few_shots(
    whole: LabeledPart, shots: int, classes: list[str], seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks: `shots` training images per class, and up to 4 validation images per class.

    Raises:
        DataError: a class has too few images.
    """
    learned, validation = np.zeros(len(whole.labels), dtype=bool), np.zeros(len(whole.labels), dtype=bool)
    others = min(shots, _FEW_SHOT_VALIDATION)
    for label, name in enumerate(classes):
        rows = sorted((whole.labels == label).nonzero()[0], key=lambda row: whole.hashes[row])
        if len(rows) < shots + others:
            raise DataError(
                f"class {name!r} has {len(rows)} training images, but {shots} shots and {others} validation images "
                f"need {shots + others}; give more images, or decrease --shots"
            )
        order = np.random.default_rng((seed, label)).permutation(len(rows))
        learned[[rows[index] for index in order[:shots]]] = True
        validation[[rows[index] for index in order[shots : shots + others]]] = True
    return learned, validation
