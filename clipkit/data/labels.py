"""Labeled images, with one class or several classes per image."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.labeled_rows import labeled_rows
from clipkit.data.missing import check_present
from clipkit.data.prompts import Templates
from clipkit.data.sequences import first_positions
from clipkit.data.sources.columns import ClassList, Rows, split_options
from clipkit.data.sources.read import read_rows
from clipkit.data.sources.saved import TableImages
from clipkit.errors import DataError
from clipkit.findings import Finding, finding_about
from clipkit.images import Stored, size_of


@dataclass(frozen=True)
class LabeledImages:
    """N images with labels from C classes."""

    name: str
    images: list[Path | Stored]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    """(N,) class index of each image; if images may have several classes, (N, C): True if the image has the class."""
    classes: list[str]
    class_names: list[str] | None = None
    """Class names for prompts, if the data contains them; None: use `classes`."""
    templates: Templates | None = None
    """Prompt templates, if the data contains them."""
    findings: Sequence[Finding] = ()
    """Findings of the reader, e.g. about files that were left out or a column that was chosen."""
    groups: Sequence[str] | None = None
    """Group of each image, e.g. its region; None if the source was given without `?group=COLUMN`."""

    @property
    def several(self) -> bool:
        """True for multilabel data: an image may have several classes."""
        return self.labels.ndim == 2

    @property
    def fingerprint(self) -> str:
        """Hash of the classes, labels and groups, and of the names and sizes of the image files."""
        digest = hashlib.sha256("\0".join(self.classes).encode() + np.asarray(self.labels, dtype="<i8").tobytes())
        for image in self.images:
            digest.update(f"{image.name}\0{size_of(image)}\0".encode())
        digest.update("\0".join(self.groups or ()).encode())
        return digest.hexdigest()

    @property
    def has_images(self) -> NDArray[np.bool_]:
        """(C,) True for each class with at least one image."""
        used = self.labels.any(axis=0) if self.several else np.bincount(self.labels, minlength=len(self.classes)) > 0
        return np.asarray(used, dtype=bool)

    def without_empty_classes(self) -> "LabeledImages":
        """Remove the classes that have no images. Multilabel data stays unchanged."""
        kept = np.flatnonzero(self.has_images)
        if self.several or len(kept) == len(self.classes):
            return self
        return replace(
            self,
            labels=np.searchsorted(kept, self.labels),
            classes=[self.classes[position] for position in kept],
            class_names=None if self.class_names is None else [self.class_names[position] for position in kept],
        )

    def positions_in(self, classes: Sequence[str], otherwise: str) -> NDArray[np.int64]:
        """Return (C,) the position of each class in the list `classes`; -1 for an unlisted class without images.

        Args:
            classes: names of classes.
            otherwise: reason and advice, to follow "has images of the class X," in the error message.

        Raises:
            DataError: a class that has images is not listed.
        """
        position = {name: index for index, name in enumerate(classes)}
        positions = np.array([position.get(name, -1) for name in self.classes], dtype=np.int64)
        unknown = np.flatnonzero((positions < 0) & self.has_images)
        if len(unknown):
            raise DataError(f"{self.name}: has images of the class {self.classes[unknown[0]]!r}, {otherwise}")
        return positions


def read_labeled(source: object) -> LabeledImages:
    """Read labeled images from class folders (`folder/class name/image`) or from a source with a label column.

    Classes are in alphabetical order, unless the source lists them, e.g. in a ClassLabel column of the library
    `datasets`, or in a file `classnames.txt` next to class folders (see `paired_names`). A file
    `zeroshot_classification_templates.txt` next to class folders contains prompt templates.

    An image has several classes if its file occurs in several rows, or if its label is a list. In a table that contains
    the images themselves, each row is a separate image.

    Args:
        source: path or name of a source, or a Python object as in `read_pairs`. Options: `?classes=FILE` gives class
            names; `?group=COLUMN` gives the group of each image, to report the accuracy of the worst group. In shards,
            `?group=npy` reads the group from the first number in each sample's .npy file.

    Raises:
        DataError: the source, a column, an image or a label is missing, or a label is not a listed class.
    """
    options = split_options(str(source))[1] if isinstance(source, str | Path) else {}
    rows = labeled_rows(read_rows(source, ["image", "label"], ["group"] * ("group" in options)), options.get("classes"))
    assert rows.images is not None
    is_embedded = isinstance(rows.images, TableImages) and bool((rows.images.sizes >= 0).any())
    image_of_row, first = first_positions(pa.array(range(len(rows.images))) if is_embedded else rows.keys)
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
    one = np.unique(np.array(image_of_label, dtype=np.int64) * len(classes) + class_of_label)
    is_several = listed.is_multilabel or len(one) != len(images)
    values: NDArray[np.int64] | NDArray[np.bool_] = one % len(classes)
    if is_several:
        values = np.zeros((len(images), len(classes)), dtype=bool)
        values[one // len(classes), one % len(classes)] = True
    findings = [*rows.findings, *_doubts(rows, image_of_row, images, values, classes)]
    names = None if listed.names is None else list(listed.names)
    groups = [_group(rows, row) for row in first.tolist()] if "group" in rows.columns else None
    return LabeledImages(rows.name, images, values, classes, names, listed.templates, findings, groups)


def _group(rows: Rows, row: int) -> str:
    value = rows.columns["group"][row].as_py()
    group = (value[0] if value else None) if isinstance(value, list) else value
    if not group:
        raise DataError(f"{rows.name}: {rows.row} {row + 1} has no group; add the group or drop the {rows.row}")
    return str(group).strip()


def _labels(rows: Rows, image_of_row: NDArray[np.int64], may_be_none: bool) -> tuple[list[int], list[str]]:
    """Return two lists with one entry per label of each row: the position of the image, and the label.

    Raises:
        DataError: a row has no label, and `may_be_none` is False.
    """
    images: list[int] = []
    labels: list[str] = []
    for row, (image, value) in enumerate(zip(image_of_row.tolist(), rows.columns["label"].to_pylist(), strict=True)):
        stripped = [(label or "").strip() for label in (value if isinstance(value, list) else [value])]
        present = [label for label in stripped if label]
        if not may_be_none and (len(present) < len(stripped) or not stripped):
            raise DataError(f"{rows.name}: {rows.row} {row + 1} has no label; add the label or drop the {rows.row}")
        images += [image] * len(present)
        labels += present
    return images, labels


def _doubts(
    rows: Rows,
    image_of_row: NDArray[np.int64],
    images: Sequence[Path | Stored],
    values: NDArray[np.int64] | NDArray[np.bool_],
    classes: Sequence[str],
) -> Iterator[Finding]:
    """Report images with several labels, equal images with different labels, and data with only one class."""
    if len(classes) == 1:
        advice = (
            "with a single class, every prediction is correct: give data with at least two classes, or give more "
            "class names"
        )
        yield Finding("one_class", "warning", f"{rows.name}: all images have the class {classes[0]!r}", advice)
    is_list = pa.types.is_large_list(rows.columns["label"].type)
    if values.ndim == 2 and not (rows.classes or ClassList()).is_multilabel:
        of_image = values.sum(axis=1)
        found = finding_about(
            np.flatnonzero(of_image != 1).tolist(), len(images),
            name="several_labels", severity="note" if is_list else "warning",
            what=f"{rows.name}: images with several labels; mean average precision is measured instead of accuracy",
            describe=lambda image: f"{images[image]}: {', '.join(classes[c] for c in values[image].nonzero()[0])}",
            advice="if each image has one class, remove the wrong rows; otherwise give a list of labels per image",
        )  # fmt: skip
        if found is not None:
            yield found
    if values.ndim == 1 and rows.keys is not None and len(image_of_row) == len(images):
        content, first = first_positions(rows.keys)
        different = np.flatnonzero(values != values[first][content])
        found = finding_about(
            different.tolist(), len(images),
            name="same_image_labels", severity="warning",
            what=f"{rows.name}: images with the same bytes as an earlier image, but with a different label",
            describe=lambda image: f"{images[image]}: {classes[values[image]]}, "
            f"{images[first[content[image]]]}: {classes[values[first[content[image]]]]}",
            advice="remove the rows with wrong labels; if an image has several classes, give one row with a list "
            "of labels",
        )  # fmt: skip
        if found is not None:
            yield found
