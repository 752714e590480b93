"""Landmark retrieval data: queries with easy, hard and ignored images, in the format of revisited Oxford and Paris."""

import json
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image

from clipkit.data.listed_images import listed_image, listing_of
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.images import Changed, Stored, size_of
from clipkit.opening import read_text
from clipkit.parsing import parse_json

_FIELDS = ("imlist", "qimlist", "gnd")
_GRADES = ("easy", "hard", "junk")


@dataclass(frozen=True)
class Landmarks:
    """Q queries, and G images among which they are searched."""

    name: str
    images: list[Path | Stored]
    """The G gallery images, followed by the Q query images."""
    easy: list[list[int]]
    """For each query, positions of the gallery images that show its object clearly."""
    hard: list[list[int]]
    """For each query, positions of the gallery images that show its object, but small, partly or from another side."""
    junk: list[list[int]]
    """For each query, positions of the gallery images that count neither as correct nor as incorrect."""

    @property
    def fingerprint(self) -> str:
        """Text that contains everything in the data that can affect a result, except the contents of the images."""
        sizes = [[image.name, size_of(image)] for image in self.images]
        return json.dumps([sizes, self.easy, self.hard, self.junk])


class Cropped(Changed):
    """Image of which only the part inside a box is used.

    Args:
        source: the file.
        box: left, upper, right and lower edge in pixels of the upright image; edges outside the image are moved to it.
    """

    __slots__ = ("box",)

    def __init__(self, source: Path, box: tuple[int, int, int, int]) -> None:
        super().__init__(source, ",".join(map(str, box)))
        self.box = box

    def changed(self, image: Image.Image) -> Image.Image:
        left, upper, right, lower = self.box
        inside = (max(0, left), max(0, upper), min(image.width, right), min(image.height, lower))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise DataError(
                f"{self.source}: the box {list(self.box)} is outside the image of {image.width} × {image.height} "
                "pixels; correct bbx in the file of the queries"
            )
        return image.crop(inside)


def read_landmarks(source: str | Path) -> Landmarks:
    """Read queries with easy, hard and ignored images from a JSON file.

    The file has the structure of `gnd_roxford5k.pkl` (Radenović et al. 2018): `imlist`, names of the gallery images;
    `qimlist`, names of the query images; `gnd`, for each query an object with `easy`, `hard` and `junk`, lists of
    positions in `imlist`, and optionally `bbx`, the box to which the query image is cropped: its left, upper, right and
    lower edge in pixels of the upright image.

    Args:
        source: path of the file, or `twemoji:landmarks` for a built-in test. Images are in the folder of the file, or
            in the folder given as `roxford5k.json?images=FOLDER`. Their names may lack the file extension.

    Raises:
        DataError: the file, a value or an image is missing or invalid.
    """
    path, folder = listing_of(source)
    folder = folder or path.parent
    gallery, queries, truth = _contents(path)
    files = {listed_image(folder, one, path): position for position, one in enumerate(gallery)}
    if len(files) < len(gallery):
        raise DataError(f"{path}: imlist has {len(gallery)} names of {len(files)} images; list each image once")
    images: list[Path | Stored] = [*files]
    grades: list[dict[str, list[int]]] = []
    for number, (query, entry) in enumerate(zip(queries, truth, strict=True)):
        where = f"{path}: query {number} ({query})"
        grades.append(_grades(entry, len(gallery), where))
        file = listed_image(folder, query, path)
        if file in files and files[file] not in grades[-1]["junk"]:
            raise DataError(f"{where} is also in imlist, so it would find itself; add its position there to junk")
        box = entry.get("bbx")
        images.append(file if box is None else Cropped(file, _box(box, where)))
    if not any(one["easy"] or one["hard"] for one in grades):
        raise DataError(f"{path}: no query has an easy or hard image; correct gnd")
    return Landmarks(str(path), images, *([one[grade] for one in grades] for grade in _GRADES))


def _contents(path: Path) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    if not is_file(path) or path.suffix != ".json":
        raise DataError(f"{path}: is not an existing JSON file; give a file with the fields {', '.join(_FIELDS)}")
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); fix the file") from None
    values: list[Any] = [content.get(field) if isinstance(content, dict) else None for field in _FIELDS]
    gallery, queries, truth = values
    for field, value in (("imlist", gallery), ("qimlist", queries)):
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise DataError(f"{path}: {field} is not a list of image names; give the fields {', '.join(_FIELDS)}")
    if not isinstance(truth, list) or len(truth) != len(queries) or not all(isinstance(one, dict) for one in truth):
        raise DataError(
            f"{path}: gnd is not a list of {len(queries)} objects, one per query of qimlist; give each the fields "
            f"{', '.join(_GRADES)}"
        )
    return gallery, queries, truth


def _grades(entry: dict[str, Any], count: int, where: str) -> dict[str, list[int]]:
    grades = {}
    for grade in _GRADES:
        positions = entry.get(grade)
        if not isinstance(positions, list) or not all(type(one) is int and 0 <= one < count for one in positions):
            raise DataError(f"{where}: {grade} is not a list of positions from 0 to {count - 1} in imlist; correct gnd")
        grades[grade] = positions
    counts = Counter(position for positions in grades.values() for position in positions)
    if twice := [position for position, count in counts.items() if count > 1]:
        raise DataError(f"{where}: position {twice[0]} is listed twice in {', '.join(_GRADES)}; list each image once")
    return grades


def _box(box: Any, where: str) -> tuple[int, int, int, int]:
    """Return the edges of a box as whole pixels."""
    if isinstance(box, list) and all(type(edge) in (int, float) and isfinite(edge) for edge in box):
        edges = [round(edge) for edge in box]
        if len(edges) == 4 and edges[0] < edges[2] and edges[1] < edges[3]:
            return (edges[0], edges[1], edges[2], edges[3])
    raise DataError(f"{where}: bbx is {str(box)[:100]}; give the left, upper, right and lower edge in pixels")
