"""Which pictures are not there, or broken."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from os.path import isfile, join
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sequences import Files
from clipkit.errors import DataError
from clipkit.pictures import Stored, open_picture


def missing_places(pictures: Sequence[Path | Stored]) -> NDArray[np.int64]:
    """Positions of those whose file is not there. What lies in something larger, or at an address, counts as there."""
    if isinstance(pictures, Files):
        folder = str(pictures.folder)
        # Strings, not Paths: a million of them take two seconds, not twenty.
        missing = [
            place
            for place, name in enumerate(pictures.names)
            if "://" not in name and not isfile(join(folder, name))  # noqa: PTH113, PTH118
        ]
    else:
        missing = [
            place for place, picture in enumerate(pictures) if isinstance(picture, Path) and not picture.is_file()
        ]
    return np.array(missing, dtype=np.int64)


def broken_pictures(pictures: Sequence[Path | Stored]) -> dict[int, str]:
    """Which of these cannot be decoded, by position: why. Reads and decodes all of them, in parallel."""

    def look(place: int) -> str | None:
        try:
            open_picture(pictures[place])
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        said = pool.map(look, range(len(pictures)))
        return {place: why for place, why in enumerate(said) if why is not None}


def check_there(name: str, pictures: Sequence[Path | Stored]) -> None:
    """Raise where a picture is missing.

    Raises:
        DataError: some are not there; says how many and names the first.
    """
    missing = missing_places(pictures)
    if len(missing):
        first = pictures[int(missing[0])]
        relative = f"; paths are relative to {pictures.folder}" if isinstance(pictures, Files) else ""
        raise DataError(
            f"{name}: {len(missing)} of its {len(pictures)} pictures are missing, the first is {first}{relative}"
        )
