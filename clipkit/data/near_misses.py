"""Images and captions that differ in one thing, in the forms of SugarCrepe and Winoground."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sources.columns import NAMES, split_options
from clipkit.errors import DataError
from clipkit.files import is_file

_CATEGORY = ("category", "collapsed_tag", "tag", "type")
_FILES = (".csv", ".tsv", ".json", ".jsonl")
_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")  # Winoground names its images without


@dataclass(frozen=True)
class NearMisses:
    """K instances: one image and two captions, the first right; or two of both, the i-th belonging together."""

    name: str
    images: list[Path]
    captions: list[str]
    image_positions: NDArray[np.int64]
    """(K, 1) or (K, 2) positions in `images`."""
    caption_positions: NDArray[np.int64]
    """(K, 2) positions in `captions`."""
    categories: list[str]
    """Of each instance."""


def read_near_misses(source: str) -> NearMisses:
    """Instances from a CSV, TSV, JSON or JSONL file, or from a folder of several, one a category.

    Each row has image, caption and negative_caption (SugarCrepe), or image_0, image_1, caption_0 and caption_1
    (Winoground), and may have a category. A JSON file is a list of rows, or an object of them by id.

    Args:
        source: a path; images are relative to it, or to the folder given as `add_att.json?images=val2017`.

    Raises:
        DataError: nothing is there, a column or an image is missing, or the forms are mixed.
    """
    name, options = split_options(source)
    path = Path(name).expanduser()
    unknown = [option for option in options if option != "images"]
    if unknown:
        raise DataError(f"{source}: {unknown[0]} is no option here; the option is images, the images' folder")
    found = sorted(file for file in path.glob("*") if file.suffix in _FILES) if path.is_dir() else [path]
    if not found:
        raise DataError(
            f"{path}: holds none of {', '.join(_FILES)}; give a file of instances, or a folder of such files"
        )
    images: dict[Path, int] = {}
    captions: dict[str, int] = {}
    image_positions, caption_positions, categories = [], [], []
    for file in found:
        folder = Path(options["images"]).expanduser() if "images" in options else file.parent
        for number, row in enumerate(_rows(file), 1):
            own_images, own_texts, category = _instance(file, number, row)
            image_positions.append([images.setdefault(_image(folder, name, file), len(images)) for name in own_images])
            caption_positions.append([captions.setdefault(text, len(captions)) for text in own_texts])
            categories.append(category or file.stem)
    if len({len(own) for own in image_positions}) != 1:
        raise DataError(f"{path}: has instances of one image and of two; evaluate them apart")
    return NearMisses(
        str(path), list(images), list(captions), np.array(image_positions), np.array(caption_positions), categories
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if file.suffix in (".csv", ".tsv"):
                rows: Any = list(csv.DictReader(opened, delimiter="\t" if file.suffix == ".tsv" else ","))
            elif file.suffix == ".jsonl":
                rows = [json.loads(line) for line in opened if line.strip()]
            elif file.suffix == ".json":
                rows = json.load(opened)
            else:
                raise DataError(f"{file}: instances are read from {', '.join(_FILES)} and folders of them")
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file; paths are relative to the working directory") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    rows = list(rows.values()) if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: must hold rows by name, as image, caption and negative_caption; it has none")
    return rows


def _instance(file: Path, number: int, row: dict[str, Any]) -> tuple[list[str], list[str], str | None]:
    category = _first(row, _CATEGORY)
    if "image_0" in row:
        names: tuple[str, ...] = ("image_0", "image_1", "caption_0", "caption_1")
        given = [str(row.get(name) or "").strip() for name in names]
        images, texts = given[:2], given[2:]
    else:
        names = ("image", "caption", "negative_caption")
        given = [_first(row, own) or "" for own in (NAMES["image"], NAMES["caption"], NAMES["negative_caption"])]
        images, texts = given[:1], given[1:]
    if not all(given):
        lacking = names[given.index("")]
        raise DataError(f"{file}: row {number} has no {lacking}; it has {', '.join(map(str, row))}")
    return images, texts, category


def _first(row: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((str(row[name]).strip() for name in names if row.get(name)), None)


def _image(folder: Path, name: str, file: Path) -> Path:
    for ending in _ENDINGS:
        for image in (folder / f"{name}{ending}", folder / "images" / f"{name}{ending}"):
            if is_file(image):
                return image
    raise DataError(f"{file}: its image {folder / name} is missing; give their folder as {file.name}?images=FOLDER")
