"""Pictures with a class each, or several."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.prompts import Templates, read_lines
from clipkit.data.table import IMAGE_COLUMNS, LABEL_COLUMNS, existing_pictures, read_table, split_options
from clipkit.errors import DataError

# What CLIP_benchmark's folders call them.
_NAMES_FILE = "classnames.txt"
_TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class LabelledPictures:
    """N pictures and C classes."""

    name: str
    pictures: list[Path]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    """(N,) the index of each one's class; or (N, C) which classes it has, where pictures have several."""
    classes: list[str]
    class_names: list[str] | None = None
    """What the classes are called in prompts, where the data says so; else as in `classes`."""
    templates: Templates | None = None
    """The data's own prompts."""

    @property
    def several(self) -> bool:
        """Whether pictures have several classes."""
        return self.labels.ndim == 2

    @property
    def fingerprint(self) -> str:
        """Hash of names, classes and file sizes."""
        digest = hashlib.sha256("\0".join(self.classes).encode() + np.asarray(self.labels, dtype="<i8").tobytes())
        for picture in self.pictures:
            digest.update(f"{picture.name}\0{picture.stat().st_size}\0".encode())
        return digest.hexdigest()

    def places_among(self, classes: Sequence[str], otherwise: str) -> NDArray[np.int64]:
        """(C,) where each of these classes stands among others.

        Raises:
            DataError: one does not; `otherwise` says what that means and what to do.
        """
        position = {name: index for index, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in position]
        if unknown:
            raise DataError(f"{self.name}: has pictures of {unknown[0]!r}, {otherwise}")
        return np.array([position[name] for name in self.classes], dtype=np.int64)


def read_labelled(source: str) -> LabelledPictures:
    """Labelled pictures from a class folder tree (`folder/class name/picture`) or from a CSV with a label column.

    Classes are in alphabetical order. A folder may hold `classnames.txt`, a name a line in the order of the class
    folders, and `zeroshot_classification_templates.txt`. Rows of a CSV that name one picture are one picture with
    several classes.

    Raises:
        DataError: nothing is there, or a column or a picture is missing.
    """
    path, _ = split_options(source)
    if path.is_dir():
        pictures, names = class_folders(path)
        return _with_own_prompts(path, _labelled(str(path), pictures, names))
    if path.suffix not in (".csv", ".tsv"):
        raise DataError(f"{source}: labels are read from .csv and .tsv files and from class folders; this is neither")
    table = read_table(source, {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS})
    position: dict[str, int] = {}
    rows = [position.setdefault(name, len(position)) for name in table.columns["image"]]
    pictures = existing_pictures(table.path, list(position))
    names = [label.strip() for label in table.columns["label"]]
    if "" in names:
        raise DataError(f"{table.path}: row {names.index('') + 1} has no label; fill it in or drop the row")
    if len(set(zip(rows, names, strict=True))) == len(pictures):
        label_of = dict(zip(rows, names, strict=True))
        return _labelled(str(path), pictures, [label_of[row] for row in range(len(pictures))])
    classes = sorted(set(names))
    index = {name: number for number, name in enumerate(classes)}
    labels = np.zeros((len(pictures), len(classes)), dtype=bool)
    labels[rows, [index[name] for name in names]] = True
    return LabelledPictures(str(path), pictures, labels, classes)


def _labelled(name: str, pictures: list[Path], names: list[str]) -> LabelledPictures:
    classes = sorted(set(names))
    index = {own: number for number, own in enumerate(classes)}
    return LabelledPictures(name, pictures, np.array([index[own] for own in names], dtype=np.int64), classes)


def pictures_in(path: Path, pattern: str = "*") -> list[Path]:
    """Files that are named as pictures, in alphabetical order."""
    known = Image.registered_extensions()
    return sorted(file for file in path.glob(pattern) if file.suffix.lower() in known)


def class_folders(path: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a class folder tree, and the class of each.

    Raises:
        DataError: there are none.
    """
    pictures = pictures_in(path, "*/*")
    if not pictures:
        raise DataError(f"{path}: holds no class folders with pictures; it should look like {path / 'cat' / '1.jpg'}")
    return pictures, [file.parent.name for file in pictures]


def _with_own_prompts(path: Path, labelled: LabelledPictures) -> LabelledPictures:
    names = read_lines(path / _NAMES_FILE) if (path / _NAMES_FILE).is_file() else None
    templates = read_lines(path / _TEMPLATES_FILE) if (path / _TEMPLATES_FILE).is_file() else None
    if names is not None and len(names) != len(labelled.classes):
        raise DataError(
            f"{path / _NAMES_FILE}: has {len(names)} names, but there are {len(labelled.classes)} class folders; "
            "give a name a line, in the alphabetical order of the folders"
        )
    return LabelledPictures(labelled.name, labelled.pictures, labelled.labels, labelled.classes, names, templates)
