"""Images in Python objects, e.g. in lists, DataFrames or torch Datasets: PIL images, arrays, bytes and paths."""

import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from torch import Tensor

from clipkit.data.sequences import Items, Strings
from clipkit.data.sources.remote import Remote
from clipkit.data.sources.urls import is_address
from clipkit.errors import DataError
from clipkit.images import Held, ImageLike, Stored, kind_of, open_image


class ObjectImages(Items[Path | Stored]):
    """Sequence of the images of a Python object, one per row; an image is fetched when it is used.

    Args:
        source: name of the object, for messages.
        fetch: function from a row number to the image of the row.
        paths: path or URL of the image of each row; "" for an image that is not a file.
    """

    def __init__(self, source: str, fetch: Callable[[int], Any], paths: Strings) -> None:
        self.source = source
        self.paths = paths
        self._fetch = fetch
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.paths)

    def _at(self, position: int) -> Path | Stored:
        path = self.paths[position]
        if path:
            return Remote(path) if is_address(path) else Path(path)
        return InObject(self, position)

    def image(self, row: int) -> ImageLike | bytes:
        """Return the image of a row. Only one thread reads at a time, because the object may not be thread-safe."""
        with self._lock:
            return image_value(self._fetch(row))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


@dataclass(frozen=True, slots=True)
class InObject(Held):
    """Image in a row of a Python object, such as a list of dicts or a DataFrame."""

    images: ObjectImages
    row: int

    @property
    def name(self) -> str:
        return f"row {self.row + 1}"

    def __str__(self) -> str:
        return f"{self.images.source}, row {self.row + 1}"

    def held(self) -> ImageLike | bytes:
        return self.images.image(self.row)

    def read_bytes(self) -> bytes:
        value = self.held()
        if isinstance(value, bytes):
            return value
        encoded = io.BytesIO()
        open_image(value).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()


def image_value(value: Any) -> ImageLike | bytes:
    """Convert a value from a Python object to an image that `open_image` accepts, or to the bytes of an image file.

    Raises:
        DataError: the value is not an image.
    """
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:  # an undecoded image of `datasets`
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Tensor):
        if value.is_floating_point():
            raise DataError(
                "a Tensor of floating-point numbers is not an image; give the image before your transform, because the "
                "model preprocesses images itself"
            )
        value = value.movedim(0, -1).numpy() if value.ndim == 3 and value.shape[0] in (1, 3, 4) else value.numpy()
        return np.ascontiguousarray(value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value)
    if isinstance(value, bytes | str | Path | Stored | Image.Image | np.ndarray):
        return value
    raise DataError(f"{kind_of(value)} is not an image; give a path, a PIL image, a uint8 array or the bytes of a file")


def path_of(value: Any) -> str:
    """Return the path of an image file; "" for an image in memory.

    A PIL image that was opened from a file, but not yet decoded, counts as this file.
    """
    if isinstance(value, dict):
        value = None if value.get("bytes") else value.get("path")
    if isinstance(value, str | Path):
        return str(value)
    # Decoding from the path keeps the object of the user small, and worker processes do not share an open file.
    if isinstance(value, ImageFile.ImageFile) and value.tile and not value.tell():
        name = str(getattr(value, "filename", ""))
        return name if name and Path(name).is_file() else ""
    return ""


def key_of(value: Any, path: str) -> str:
    """Return a string that is equal for equal images: the path, or a hash of the bytes or pixels."""
    if path:
        return path
    if isinstance(value, ImageFile.ImageFile) and value.tile:  # hashing would load its pixels
        return f"object {id(value)}"
    value = image_value(value)
    if isinstance(value, bytes):
        return f"bytes {hashlib.sha256(value).hexdigest()}"
    if isinstance(value, Image.Image):
        return f"pixels {value.mode} {value.size} {hashlib.sha256(value.tobytes()).hexdigest()}"
    array = np.asarray(value)
    return f"pixels {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
