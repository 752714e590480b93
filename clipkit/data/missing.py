"""Which images are not there, or broken."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sequences import Files
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.images import Stored, open_image

# Files of one folder that are asked for one by one.
_FEW = 100


def missing_places(images: Sequence[Path | Stored]) -> NDArray[np.int64]:
    """Positions of those whose file is not there. What lies in something larger, or at an address, counts as there."""
    if isinstance(images, Files):
        return _missing_files(str(images.folder), images.names)
    missing = [place for place, image in enumerate(images) if isinstance(image, Path) and not is_file(image)]
    return np.array(missing, dtype=np.int64)


def _missing_files(root: str, names: Iterable[str]) -> NDArray[np.int64]:
    """Folder by folder: to list one is many times faster than to ask for each of its files."""
    wanted: dict[str, dict[str, list[int]]] = {}
    for place, name in enumerate(names):
        if "://" not in name:
            folder, _, own = name.rpartition("/")
            wanted.setdefault(folder, {}).setdefault(own, []).append(place)
    missing: list[int] = []
    for folder, places_of in wanted.items():
        where = Path(root, folder)
        if len(places_of) < _FEW:
            gone = {own for own in places_of if not is_file(where / own)}
        else:
            try:
                with os.scandir(where) as entries:
                    gone = places_of.keys() - {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                gone = set(places_of)
        missing += [place for own in gone for place in places_of[own]]
    return np.array(sorted(missing), dtype=np.int64)


def broken_images(images: Sequence[Path | Stored]) -> dict[int, str]:
    """Which of these cannot be decoded, by position: why. Reads and decodes all of them, in parallel."""

    def look(place: int) -> str | None:
        try:
            open_image(images[place])
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        said = pool.map(look, range(len(images)))
        return {place: why for place, why in enumerate(said) if why is not None}


def check_there(name: str, images: Sequence[Path | Stored]) -> None:
    """Raise where an image is missing.

    Raises:
        DataError: some are not there; says how many and names the first.
    """
    missing = missing_places(images)
    if len(missing):
        first = images[int(missing[0])]
        relative = f"; paths are relative to {images.folder}" if isinstance(images, Files) else ""
        raise DataError(
            f"{name}: {len(missing)} of its {len(images)} images are missing, the first is {first}{relative}"
        )
