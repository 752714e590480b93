"""Labeled images, with one class or several classes per image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.missing import check_present
from clipkit.data.prompts import Templates
from clipkit.data.sequences import first_positions
from clipkit.data.sources.columns import ClassList, Rows
from clipkit.data.sources.read import read_rows
from clipkit.errors import DataError
from clipkit.images import Stored, size_of


@dataclass(frozen=True)
class LabeledImages:
    """N images with labels from C classes."""

    name: str
    images: list[Path | Stored]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    """(N,) class index of each image; or, if images have several classes, (N, C) True if the image has the class."""
    classes: list[str]
    class_names: list[str] | None = None
    """Class names for prompts, if the data contains them; None: use `classes`."""
    templates: Templates | None = None
    """Prompts, if the data contains them."""

    @property
    def several(self) -> bool:
        """True if an image may have several classes."""
        return self.labels.ndim == 2

    @property
    def fingerprint(self) -> str:
        """Hash of names, classes and file sizes."""
        digest = hashlib.sha256("\0".join(self.classes).encode() + np.asarray(self.labels, dtype="<i8").tobytes())
        for image in self.images:
            digest.update(f"{image.name}\0{size_of(image)}\0".encode())
        return digest.hexdigest()

    def places_among(self, classes: Sequence[str], otherwise: str) -> NDArray[np.int64]:
        """Return the (C,) positions of these classes in another list of classes.

        Raises:
            DataError: a class is not in the list; `otherwise` is the end of the message, with the reason and advice.
        """
        position = {name: index for index, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in position]
        if unknown:
            raise DataError(f"{self.name}: has images of the class {unknown[0]!r}, {otherwise}")
        return np.array([position[name] for name in self.classes], dtype=np.int64)


def read_labeled(source: object) -> LabeledImages:
    """Read labeled images from class folders (`folder/class name/image`) or any source with a label column.

    Classes are in alphabetical order, unless the source lists them: `classnames.txt` next to class folders gives one
    name per line in the order of the folders, `zeroshot_classification_templates.txt` gives prompts. An image in
    several rows, or with a list of labels, has several classes. Python objects are sources as for `read_pairs`.

    Raises:
        DataError: the source, a column, an image or a label is missing, or a label is not a listed class.
    """
    rows = read_rows(source, ["image", "label"])
    assert rows.images is not None
    image_of_row, first = first_positions(rows.keys)
    images = [rows.images[row] for row in first.tolist()]
    check_present(rows.name, images)
    listed = rows.classes or ClassList()
    image_of_label, labels = _labels(rows, image_of_row, listed.is_multilabel)
    classes = list(listed.labels) if listed.labels is not None else sorted(set(labels))
    index = {label: position for position, label in enumerate(classes)}
    unknown = next((label for label in labels if label not in index), None)
    if unknown is not None:
        raise DataError(
            f"{rows.name}: has the label {unknown!r}, which is not one of its {len(classes)} listed "
            "classes; fix the label or add the class"
        )
    class_of_label = np.array([index[label] for label in labels], dtype=np.int64)
    names = None if listed.names is None else list(listed.names)
    if not listed.is_multilabel and len(set(zip(image_of_label, labels, strict=True))) == len(images):
        one = np.zeros(len(images), dtype=np.int64)
        one[image_of_label] = class_of_label
        return LabeledImages(rows.name, images, one, classes, names, listed.templates)
    several = np.zeros((len(images), len(classes)), dtype=bool)
    several[image_of_label, class_of_label] = True
    return LabeledImages(rows.name, images, several, classes, names, listed.templates)


def _labels(rows: Rows, image_of_row: NDArray[np.int64], may_be_none: bool) -> tuple[list[int], list[str]]:
    """Return all labels, and the image of each label.

    Raises:
        DataError: an image has no label, although it needs one.
    """
    images: list[int] = []
    labels: list[str] = []
    for row, (image, value) in enumerate(zip(image_of_row.tolist(), rows.columns["label"].to_pylist(), strict=True)):
        stripped = [(label or "").strip() for label in (value if isinstance(value, list) else [value])]
        present = [label for label in stripped if label]
        if not may_be_none and (len(present) < len(stripped) or not stripped):
            raise DataError(f"{rows.name}: {rows.row} {row + 1} has no label; fill it in or drop the {rows.row}")
        images += [image] * len(present)
        labels += present
    return images, labels
