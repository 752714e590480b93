"""Compositional evaluation data: hard negative captions or images, in the formats of SugarCrepe and Winoground."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.listed_images import listing_of
from clipkit.data.sequences import Files
from clipkit.data.sources.columns import NAMES, Rows, Wanted
from clipkit.data.sources.read import rows_of
from clipkit.data.sources.walk import matching
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.images import Stored, kind_of

_FILES = (".csv", ".tsv", ".json", ".jsonl")
_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")  # Winoground names images without the extension
ONE_IMAGE = ("image", "caption", "negative_caption")
SECOND_CAPTION = "caption2"  # column of SugarCrepe++
TWO_IMAGES = ("image_0", "image_1", "caption_0", "caption_1")
_GROUP = "group"
GROUP = ("category", "collapsed_tag", "tag", "type")
_NAMES = {
    **{role: NAMES[role] for role in ONE_IMAGE},
    **{role: (role,) for role in (SECOND_CAPTION, *TWO_IMAGES)},
    _GROUP: GROUP,
}


@dataclass(frozen=True)
class NearMisses:
    """Compositional evaluation data with K instances.

    An instance has one image with a correct and an incorrect caption, or two images with one caption each. In the
    format of SugarCrepe++, an instance has one image with a correct, an incorrect and a second correct caption.
    """

    name: str
    images: Sequence[Path | Stored]
    captions: list[str]
    image_positions: NDArray[np.int64]
    """(K, 1) or (K, 2) positions in `images`; all instances have the same number of images."""
    caption_positions: NDArray[np.int64]
    """(K, 2) or (K, 3) positions in `captions`; all instances have the same number of captions."""
    categories: list[str]
    """Category of each instance."""


def read_near_misses(source: str | Path) -> NearMisses:
    """Read compositional evaluation data from a file, or from a folder with one file per category.

    A file has one of two sets of columns:
    - SugarCrepe: image, caption, negative_caption, and in SugarCrepe++ also caption2, a second correct caption.
    - Winoground: image_0, image_1, caption_0, caption_1.
    A column category is optional. The file type is CSV, TSV, JSONL, or JSON. A JSON file contains a list of rows, or an
    object that maps IDs to rows.

    Args:
        source: path of the file or folder, or `twemoji:near_misses` for a built-in test. Image paths are relative to
            the folder of the file, or to FOLDER in `add_att.json?images=FOLDER`.

    Raises:
        DataError: the file, a column or an image is missing, or the two sets of columns are mixed.
    """
    if not isinstance(source, str | Path):
        raise DataError(f"{kind_of(source)} is not compositional data; give the path of a file or a folder")
    path, images_folder = listing_of(source)
    files = [file for file in matching(path / "*") if file.suffix in _FILES] if path.is_dir() else [path]
    if not files or not all(file.suffix in _FILES for file in files):
        raise DataError(
            f"{path}: is neither a file of type {', '.join(_FILES)} nor a folder of such files; give data in the "
            "format of SugarCrepe or Winoground"
        )
    images: dict[Path, int] = {}
    captions: dict[str, int] = {}
    image_positions, caption_positions, categories = [], [], []
    for file in files:
        folder = images_folder or file.parent
        for image_names, texts, category in _instances(file):
            paths = [_image(folder, image, file) for image in image_names]
            image_positions.append([images.setdefault(image, len(images)) for image in paths])
            caption_positions.append([captions.setdefault(text, len(captions)) for text in texts])
            categories.append(category or file.stem)
    if len({len(positions) for positions in caption_positions}) != 1:
        raise DataError(
            f"{path}: only some of its files have the column {SECOND_CAPTION}; evaluate each file separately"
        )
    if len({len(positions) for positions in image_positions}) != 1:
        raise DataError(
            f"{path}: contains files with one image per row and files with two images per row; evaluate each "
            "file separately"
        )
    return NearMisses(
        str(path), list(images), list(captions), np.array(image_positions), np.array(caption_positions), categories
    )


def _instances(file: Path) -> list[tuple[list[str], list[str], str]]:
    """Return the image names, the captions and the category of each row; without category, ""."""
    rows = rows_of(str(file), Wanted(str(file), {}, (), tuple(_NAMES), _NAMES))
    values = {role: column.to_pylist() for role, column in rows.columns.items()}
    if isinstance(rows.images, Files):
        values["image"] = list(rows.images.names)
    count = len(next(iter(values.values())))
    second = (SECOND_CAPTION,) if SECOND_CAPTION in values else ()
    roles = TWO_IMAGES if "image_0" in values else (*ONE_IMAGE, *second)
    given = [_column(file, rows, values, role) for role in roles]
    groups = values.get(_GROUP, [""] * count)
    shown = 2 if roles == TWO_IMAGES else 1
    return [
        (list(row[:shown]), list(row[shown:]), str(group).strip()) for *row, group in zip(*given, groups, strict=True)
    ]


def _column(file: Path, rows: Rows, values: dict[str, list[str]], role: str) -> Sequence[str]:
    column = values.get(role)
    if column is None:
        raise DataError(
            f"{file}: has no column {role}; its columns are {', '.join(rows.found.values())}; add the missing column"
        )
    texts = [str(text).strip() for text in column]
    if "" in texts:
        raise DataError(f"{file}: row {texts.index('') + 1} has no {role}; add the value or drop the row")
    return texts


def _image(folder: Path, name: str, file: Path) -> Path:
    for ending in _ENDINGS:
        for image in (folder / f"{name}{ending}", folder / "images" / f"{name}{ending}"):
            if is_file(image):
                return image
    raise DataError(
        f"{file}: image {folder / name} is missing; give the folder of the images as {file.name}?images=FOLDER"
    )
