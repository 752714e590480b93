"""Which picture files are not there."""

from collections.abc import Sequence
from os.path import isfile, join
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sequences import Files
from clipkit.errors import DataError
from clipkit.pictures import Stored


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
