"""Resizing and encoding of images for shards."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipkit.errors import DataError, one_line
from clipkit.image_formats import open_content
from clipkit.images import Stored, in_memory, open_image
from clipkit.pixels import has_lower_bytes

# Formats whose files are kept unchanged if the image is small enough, with their extension.
_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112  # number of the EXIF tag Orientation
_BICUBIC = Image.Resampling.BICUBIC  # Pillow's resize applies antialiasing


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image file and its type."""

    content: bytes
    ending: str
    """Extension: jpg, png or webp."""
    source_bytes: int
    """Size of the source file."""


def encoded(image: Path | Stored, size: int, quality: int = 90, lossless: bool = False) -> Encoded:
    """Encode an image as an upright RGB image whose short side is at most `size` pixels.

    A JPEG, PNG or WebP file that already is such an image stays unchanged. Other files lose their metadata.

    Args:
        image: path of the image, or an image stored in an archive or table.
        size: largest short side in pixels. Larger images are resized (bicubic, with antialiasing). The long side is
            truncated to whole pixels, as in torchvision.
        quality: JPEG quality, 1 to 100.
        lossless: PNG instead of JPEG.

    Raises:
        DataError: the image is missing or cannot be decoded or encoded.

    Example:
        >>> encoded(Path("photo.jpg"), 256).ending    # doctest: +SKIP
        'jpg'
    """
    file = in_memory(image)  # read the file only once: it may be on a network drive
    opened = open_image(file)
    short, long = sorted(opened.size)
    if short <= size:
        ending = _extension_if_plain(file.content)
        if ending is not None:
            return Encoded(file.content, ending, file.size)
    else:
        # The long side is truncated, not rounded, so that training does not resize the image again.
        longer = int(size * long / short)
        opened = opened.resize((size, longer) if opened.width <= opened.height else (longer, size), _BICUBIC)
    opened.info = {}  # drop comments and profiles, which Pillow would copy
    content = io.BytesIO()
    try:
        if lossless:
            opened.save(content, "PNG")
        else:
            opened.save(content, "JPEG", quality=quality)
    except (OSError, ValueError, struct.error) as error:  # such as a side of more than 65,535 pixels
        raise DataError(
            f"{image}: an image of {opened.width} × {opened.height} pixels cannot be saved as "
            f"{'PNG' if lossless else 'JPEG'} ({one_line(error)}); replace the file or drop its rows"
        ) from None
    return Encoded(content.getvalue(), "png" if lossless else "jpg", file.size)


def _extension_if_plain(content: bytes) -> str | None:
    """Return the extension if an image file can be copied unchanged; None if the image must be encoded again.

    A file can be copied if every decoder returns the same pixels as `open_image`.
    """
    with open_content(content) as file:
        plain = (
            file.format in _KEPT
            and file.mode == "RGB"
            and not has_lower_bytes(file)
            and "transparency" not in file.info
            and getattr(file, "n_frames", 1) == 1
            and file.getexif().get(_ORIENTATION, 1) == 1
        )
        return _KEPT[str(file.format)] if plain else None
