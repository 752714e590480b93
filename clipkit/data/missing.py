"""Detection of images that are missing or cannot be decoded."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sequences import Files
from clipkit.data.sources.remote import check_fetched
from clipkit.data.sources.urls import is_address
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.images import Stored, open_image

# Number of files in a folder from which the folder is listed; fewer files are checked one by one.
_FEW = 100
# Largest number of images for which URLs are downloaded in advance.
_MOST_FETCHED = 100_000


def missing_positions(images: Sequence[Path | Stored]) -> NDArray[np.int64]:
    """Return the positions of images whose file does not exist.

    Images in archives and at URLs are not checked.
    """
    if isinstance(images, Files):
        return _missing_files(str(images.folder), images.names)
    missing = [index for index, image in enumerate(images) if isinstance(image, Path) and not is_file(image)]
    return np.array(missing, dtype=np.int64)


def _missing_files(root: str, names: Iterable[str]) -> NDArray[np.int64]:
    """Return the positions of the names that have no file in the folder `root`."""
    wanted: dict[str, dict[str, list[int]]] = {}
    for position, name in enumerate(names):
        if not is_address(name):
            folder, _, file = name.rpartition("/")
            wanted.setdefault(folder, {}).setdefault(file, []).append(position)
    missing: list[int] = []
    for folder, positions in wanted.items():
        path = Path(root, folder)
        if len(positions) < _FEW:
            absent = {file for file in positions if not is_file(path / file)}
        else:
            try:
                with os.scandir(path) as entries:
                    absent = positions.keys() - {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                absent = set(positions)
        missing += [position for file in absent for position in positions[file]]
    return np.array(sorted(missing), dtype=np.int64)


def broken_images(images: Sequence[Path | Stored]) -> dict[int, str]:
    """Decode all images in parallel. Return the images that cannot be decoded (position -> reason)."""

    def problem(index: int) -> str | None:
        try:
            open_image(images[index])
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = pool.map(problem, range(len(images)))
        return {index: reason for index, reason in enumerate(problems) if reason is not None}


def check_present(name: str, images: Sequence[Path | Stored]) -> None:
    """Check that all image files exist.

    Images at URLs are downloaded to check them, unless the data has more than 100,000 images.

    Raises:
        DataError: images are missing or cannot be downloaded.
    """
    missing = missing_positions(images)
    if len(missing):
        first = images[int(missing[0])]
        relative = f" (paths are relative to {images.folder})" if isinstance(images, Files) else ""
        raise DataError(
            f"{name}: {len(missing)} of its {len(images)} images are missing, the first is {first}{relative}; fix the "
            "paths or drop the rows"
        )
    if len(images) <= _MOST_FETCHED:
        check_fetched(name, images)
