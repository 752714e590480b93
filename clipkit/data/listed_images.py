"""Images that a file lists by name, with or without the file extension."""

from pathlib import Path

from clipkit.errors import DataError
from clipkit.files import is_file

_ENDINGS = ("", ".jpg", ".png", ".jpeg", ".webp")


def listed_image(folder: Path, name: str, file: Path) -> Path:
    """Return the path of an image in a folder.

    Args:
        folder: folder of the images.
        name: name of the image, which may lack the file extension.
        file: file that lists the image, for the message.

    Raises:
        DataError: there is no such image.
    """
    for ending in _ENDINGS:
        if is_file(folder / f"{name}{ending}"):
            return folder / f"{name}{ending}"
    raise DataError(
        f"{file}: image {folder / name} is missing; give the folder of the images as {file.name}?images=FOLDER"
    )
