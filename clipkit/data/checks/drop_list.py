"""Reader of a list of images and captions to drop, as written by `clipkit browse`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipkit.data.checks.leaks import image_name
from clipkit.data.pairs import Pairs
from clipkit.data.sources.json_rows import all_objects
from clipkit.errors import DataError

_KEYS = {"image", "caption", "reason"}


@dataclass(frozen=True)
class DropList:
    """Images and captions to drop from a dataset, with reasons."""

    images: Mapping[int, str] = field(default_factory=dict)
    """Reason for each image to drop, by position of the image."""
    captions: Mapping[tuple[int, str], str] = field(default_factory=dict)
    """Reason for each caption to drop, by position of the image and text of the caption (stripped of white space)."""


def read_drop_list(file: Path, pairs: Pairs) -> DropList:
    """Read a list of images and captions to drop.

    Each line of the file is a JSON object with an `image`, a `reason` and optionally a `caption`. Without `caption`,
    the image is dropped with all its captions. With `caption`, only this caption is dropped.

    Args:
        file: a .jsonl file.
        pairs: the data that contains the images.

    Raises:
        DataError: the file cannot be read, or names an image or a caption that the data does not have.
    """
    if file.suffix.lower() != ".jsonl":
        raise DataError(
            f"{file}: is not a .jsonl file; give a list of images to drop, as clipkit browse or "
            "clipkit data doubtful writes it"
        )
    position_of = {image_name(pairs, position): position for position in range(len(pairs.images))}
    known: set[tuple[int, str]] = set()
    images: dict[int, str] = {}
    captions: dict[tuple[int, str], str] = {}
    for number, entry in enumerate(all_objects(file), 1):
        name, caption, reason = (entry.get(key) for key in ("image", "caption", "reason"))
        reason = reason or f"is in {file.name}"
        if entry.keys() - _KEYS or not isinstance(name, str) or not isinstance(caption, str | None):
            raise DataError(
                f"{file}: entry {number} is invalid; write an object with image and reason, and "
                "with caption to drop only one caption"
            )
        if name not in position_of:
            raise DataError(f"{file}: {pairs.name} has no image {name[:200]}; give a list that was made for this data")
        position = position_of[name]
        if caption is None:
            images[position] = str(reason)
            continue
        known = known or {
            (image, text.strip()) for image, text in zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True)
        }
        if (position, caption.strip()) not in known:
            raise DataError(
                f"{file}: in {pairs.name}, the image {name[:200]} has no caption {caption[:80]!r}; give a "
                "list that was made for this data"
            )
        captions[position, caption.strip()] = str(reason)
    return DropList(images, captions)
