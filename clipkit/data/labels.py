"""Images with a class each, or several."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.missing import check_there
from clipkit.data.prompts import Templates, read_lines
from clipkit.data.sequences import first_places
from clipkit.data.sources.read import read_rows
from clipkit.errors import DataError
from clipkit.images import Stored, size_of

# What CLIP_benchmark's folders call them.
_NAMES_FILE = "classnames.txt"
_TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class LabelledImages:
    """N images and C classes."""

    name: str
    images: list[Path | Stored]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    """(N,) the index of each one's class; or (N, C) which classes it has, where images have several."""
    classes: list[str]
    class_names: list[str] | None = None
    """What the classes are called in prompts, where the data says so; else as in `classes`."""
    templates: Templates | None = None
    """The data's own prompts."""

    @property
    def several(self) -> bool:
        """Whether images have several classes."""
        return self.labels.ndim == 2

    @property
    def fingerprint(self) -> str:
        """Hash of names, classes and file sizes."""
        digest = hashlib.sha256("\0".join(self.classes).encode() + np.asarray(self.labels, dtype="<i8").tobytes())
        for image in self.images:
            digest.update(f"{image.name}\0{size_of(image)}\0".encode())
        return digest.hexdigest()

    def places_among(self, classes: Sequence[str], otherwise: str) -> NDArray[np.int64]:
        """(C,) where each of these classes stands among others.

        Raises:
            DataError: one does not; `otherwise` says what that means and what to do.
        """
        position = {name: index for index, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in position]
        if unknown:
            raise DataError(f"{self.name}: has images of {unknown[0]!r}, {otherwise}")
        return np.array([position[name] for name in self.classes], dtype=np.int64)


def read_labelled(source: str) -> LabelledImages:
    """Labelled images from class folders (`folder/class name/image`), or from any source with a label column.

    Classes are in alphabetical order. A folder may hold `classnames.txt`, a name a line in the order of the class
    folders, and `zeroshot_classification_templates.txt`. Rows that name one image, and rows with a list of labels,
    are one image with several classes.

    Raises:
        DataError: nothing is there, or a column or an image is missing.
    """
    rows = read_rows(source, ["image", "label"])
    assert rows.images is not None
    which, first = first_places(rows.keys)
    images = [rows.images[row] for row in first.tolist()]
    check_there(rows.name, images)
    named = [own if isinstance(own, list) else [own] for own in rows.columns["label"].to_pylist()]
    named = [[label or "" for label in own] for own in named]
    pairs = [(image, label.strip()) for image, own in zip(which.tolist(), named, strict=True) for label in own]
    if not all(label for _, label in pairs) or not all(named):
        row = next(row for row, own in enumerate(named) if not own or not all(label.strip() for label in own))
        raise DataError(f"{rows.name}: {rows.row} {row + 1} has no label; fill it in or drop the {rows.row}")
    if len(set(pairs)) == len(images):
        label_of = dict(pairs)
        labelled = _labelled(rows.name, images, [label_of[image] for image in range(len(images))])
        folder = Path(rows.name)
        return _with_own_prompts(folder, labelled) if folder.is_dir() else labelled
    classes = sorted({label for _, label in pairs})
    index = {name: number for number, name in enumerate(classes)}
    labels = np.zeros((len(images), len(classes)), dtype=bool)
    for image, label in pairs:
        labels[image, index[label]] = True
    return LabelledImages(rows.name, images, labels, classes)


def _labelled(name: str, images: list[Path | Stored], names: list[str]) -> LabelledImages:
    classes = sorted(set(names))
    index = {own: number for number, own in enumerate(classes)}
    return LabelledImages(name, images, np.array([index[own] for own in names], dtype=np.int64), classes)


def _with_own_prompts(path: Path, labelled: LabelledImages) -> LabelledImages:
    names = read_lines(path / _NAMES_FILE) if (path / _NAMES_FILE).is_file() else None
    templates = read_lines(path / _TEMPLATES_FILE) if (path / _TEMPLATES_FILE).is_file() else None
    if names is not None and len(names) != len(labelled.classes):
        raise DataError(
            f"{path / _NAMES_FILE}: has {len(names)} names, but there are {len(labelled.classes)} class folders; "
            "give a name a line, in the alphabetical order of the folders"
        )
    return LabelledImages(labelled.name, labelled.images, labelled.labels, labelled.classes, names, templates)
