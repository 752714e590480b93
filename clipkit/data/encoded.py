"""An image made small, as the bytes of a file."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipkit.errors import DataError, one_line
from clipkit.images import Stored, open_image

# What keeps its bytes where it is small enough, and the ending of its file.
_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112  # in EXIF
_BICUBIC = Image.Resampling.BICUBIC  # antialiased, as Pillow does it


@dataclass(frozen=True, slots=True)
class Encoded:
    """The bytes of an image's file."""

    content: bytes
    ending: str
    """jpg, png or webp."""
    source_bytes: int
    """Size of the file that it was made from."""


def encoded(image: Path | Stored, size: int, quality: int = 90, lossless: bool = False) -> Encoded:
    """An upright RGB image whose short side is at most `size` pixels.

    One that is so already, in a JPEG, PNG or WebP file, keeps its bytes. The others lose their metadata.

    Args:
        image: its file.
        size: short side in pixels, to which larger ones are resized: bicubic, antialiased, with torchvision's rounding
            of the long side.
        quality: of JPEG, 1 to 100.
        lossless: PNG instead of JPEG.

    Raises:
        DataError: it is missing or cannot be decoded or encoded.

    Example:
        >>> encoded(Path("photo.jpg"), 256).ending    # doctest: +SKIP
        'jpg'
    """
    held = _Held(image)
    opened = open_image(held)
    content = held.read_bytes()
    short, long = sorted(opened.size)
    if short <= size:
        ending = _ending_if_plain(content)
        if ending is not None:
            return Encoded(content, ending, len(content))
    else:
        # Cut off, not rounded: resizing to this size in training then finds nothing left to do.
        longer = int(size * long / short)
        opened = opened.resize((size, longer) if opened.width <= opened.height else (longer, size), _BICUBIC)
    opened.info = {}  # comments and profiles that Pillow would copy
    file = io.BytesIO()
    try:
        if lossless:
            opened.save(file, "PNG")
        else:
            opened.save(file, "JPEG", quality=quality)
    except (OSError, ValueError, struct.error) as error:  # as a side of more than 65,535 pixels
        raise DataError(
            f"{image}: its {opened.width} × {opened.height} pixels cannot be encoded ({one_line(error)}); replace "
            "the file or drop its rows"
        ) from None
    return Encoded(file.getvalue(), "png" if lossless else "jpg", len(content))


class _Held(Stored):
    """An image's file, read once: it may lie at the far end of a network."""

    __slots__ = ("_content", "_image")

    def __init__(self, image: Path | Stored) -> None:
        self._image = image
        self._content: bytes | None = None

    @property
    def name(self) -> str:
        return self._image.name

    @property
    def size(self) -> int:
        return len(self.read_bytes())

    def __str__(self) -> str:
        return str(self._image)

    def read_bytes(self) -> bytes:
        if self._content is None:
            self._content = self._image.read_bytes()
        return self._content


def _ending_if_plain(content: bytes) -> str | None:
    """The file's ending, where any reader finds the very image in it that open_image does."""
    with Image.open(io.BytesIO(content)) as file:
        plain = (
            file.format in _KEPT
            and file.mode == "RGB"
            and "transparency" not in file.info
            and getattr(file, "n_frames", 1) == 1
            and file.getexif().get(_ORIENTATION, 1) == 1
        )
        return _KEPT[str(file.format)] if plain else None
