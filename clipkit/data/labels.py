"""Pictures with a class each."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.table import IMAGE_COLUMNS, LABEL_COLUMNS, existing_pictures, read_table, split_options
from clipkit.errors import DataError


@dataclass(frozen=True)
class LabelledPictures:
    """N pictures, and for each the index of its class among the C class names."""

    name: str
    pictures: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]

    @cached_property
    def sha256(self) -> str:
        """Hash of the picture names and classes in order; not of the pixels."""
        lines = (
            f"{path.name}\0{self.classes[label]}\0" for path, label in zip(self.pictures, self.labels, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_labelled(source: str) -> LabelledPictures:
    """Labelled pictures from a class folder tree (`folder/class name/picture`) or from a CSV with a label column.

    Classes are in alphabetical order.

    Raises:
        DataError: nothing is there, or a column or a picture is missing.
    """
    path, _ = split_options(source)
    if path.is_dir():
        pictures, names = _class_folders(path)
    elif path.suffix in (".csv", ".tsv"):
        table = read_table(source, {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS})
        pictures, names = existing_pictures(table.path, table.columns["image"]), table.columns["label"]
    else:
        raise DataError(f"{source}: labels are read from .csv and .tsv files and from class folders; this is neither")
    classes = sorted(set(names))
    index = {name: number for number, name in enumerate(classes)}
    return LabelledPictures(str(path), pictures, np.array([index[name] for name in names], dtype=np.int64), classes)


def _class_folders(path: Path) -> tuple[list[Path], list[str]]:
    known = Image.registered_extensions()
    pictures = sorted(file for file in path.glob("*/*") if file.suffix.lower() in known)
    if not pictures:
        raise DataError(f"{path}: holds no class folders with pictures; it should look like {path / 'cat' / '1.jpg'}")
    return pictures, [file.parent.name for file in pictures]
