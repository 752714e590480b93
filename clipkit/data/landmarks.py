"""Landmark retrieval data, in the format of the revisited Oxford and Paris datasets."""

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
    """Q query images, and the G gallery images in which each query is searched."""

    name: str
    images: list[Path | Stored]
    """The G gallery images, followed by the Q query images."""
    easy: list[list[int]]
    """For each query, positions of the gallery images that show its object clearly."""
    hard: list[list[int]]
    """For each query, positions of the gallery images that show its object, but small, partly or from another side."""
    junk: list[list[int]]
    """For each query, positions of the gallery images that are ignored: they are neither correct nor incorrect."""

    @property
    def fingerprint(self) -> str:
        """JSON text with the image names, file sizes and relevance lists, to detect changes of the data."""
        sizes = [[image.name, size_of(image)] for image in self.images]
        return json.dumps([sizes, self.easy, self.hard, self.junk])


class Cropped(Changed):
    """Image that is cropped to a box.

    Args:
        source: path of the image file.
        box: left, upper, right and lower edges in pixels of the upright image. The box is clipped to the image.
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
                "pixels; correct bbx in the JSON file"
            )
        return image.crop(inside)


def read_landmarks(source: str | Path) -> Landmarks:
    """Read queries with easy, hard and ignored images from a JSON file.

    The file has the structure of `gnd_roxford5k.pkl` (Radenović et al. 2018), an object with three fields. `imlist`
    lists the names of the gallery images, and `qimlist` lists the names of the query images. `gnd` has one object per
    query: its fields `easy`, `hard` and `junk` are lists of positions in `imlist`. Its optional field `bbx` is the box
    to which the query image is cropped: left, upper, right and lower edges in pixels of the upright image.

    Args:
        source: path of the file, or `twemoji:landmarks` for a built-in test. Image names are relative to the folder of
            the file, or to FOLDER in `roxford5k.json?images=FOLDER`. The file extension of an image may be omitted.

    Raises:
        DataError: the file, a value or an image is missing or invalid.
    """
    path, folder = listing_of(source)
    folder = folder or path.parent
    gallery, queries, truth = _contents(path)
    files = {listed_image(folder, one, path): position for position, one in enumerate(gallery)}
    if len(files) < len(gallery):
        raise DataError(f"{path}: imlist has {len(gallery)} names of only {len(files)} images; list each image once")
    images: list[Path | Stored] = [*files]
    grades: list[dict[str, list[int]]] = []
    for number, (query, entry) in enumerate(zip(queries, truth, strict=True)):
        where = f"{path}: query {number} ({query})"
        grades.append(_grades(entry, len(gallery), where))
        file = listed_image(folder, query, path)
        if file in files and files[file] not in grades[-1]["junk"]:
            raise DataError(
                f"{where} is also in imlist, so the query would find itself; add the position of this "
                "image in imlist to junk"
            )
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
            f"{path}: gnd is not a list of {len(queries)} objects, one per query in qimlist; give each object the "
            f"fields {', '.join(_GRADES)}"
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
        raise DataError(
            f"{where}: position {twice[0]} is listed twice in {', '.join(_GRADES)}; list each position once"
        )
    return grades


def _box(box: Any, where: str) -> tuple[int, int, int, int]:
    """Check a box, and round its edges to whole pixels."""
    if isinstance(box, list) and all(type(edge) in (int, float) and isfinite(edge) for edge in box):
        edges = [round(edge) for edge in box]
        if len(edges) == 4 and edges[0] < edges[2] and edges[1] < edges[3]:
            return (edges[0], edges[1], edges[2], edges[3])
    raise DataError(f"{where}: bbx is {str(box)[:100]}; give the left, upper, right and lower edge in pixels")
