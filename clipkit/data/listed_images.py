"""Lookup of images that a data file lists by name, with or without the file extension."""

from pathlib import Path

from clipkit.data.sources.columns import split_options
from clipkit.data.sources.emoji_tests import emoji_test
from clipkit.errors import DataError
from clipkit.files import is_file

_ENDINGS = ("", ".jpg", ".png", ".jpeg", ".webp")


def listing_of(source: str | Path) -> tuple[Path, Path | None]:
    """Return the path of a data file, and the image folder that the option `?images=FOLDER` gives.

    The folder is None without this option.

    Args:
        source: a path, optionally with `?images=FOLDER`, or `twemoji:NAME` for the file of a built-in test.

    Raises:
        DataError: the source has another option, or there is no such test.
    """
    name, options = split_options(str(source))
    path = emoji_test(name) if name.startswith("twemoji:") else Path(name).expanduser()
    if unknown := [option for option in options if option != "images"]:
        raise DataError(f"{source}: unknown option {unknown[0]}; use only images=FOLDER, the folder of the images")
    return path, Path(options["images"]).expanduser() if "images" in options else None


def listed_image(folder: Path, name: str, file: Path) -> Path:
    """Return the path of an image that a data file lists.

    Args:
        folder: folder of the images.
        name: name of the image; the file extension may be omitted.
        file: the data file that lists the image, for the error message.

    Raises:
        DataError: the folder has no such image.
    """
    for ending in _ENDINGS:
        if is_file(folder / f"{name}{ending}"):
            return folder / f"{name}{ending}"
    raise DataError(
        f"{file}: image {folder / name} is missing; give the folder of the images as {file.name}?images=FOLDER"
    )
