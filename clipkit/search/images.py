"""Open images of an index from their source. The index stores only the locations of images."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from clipkit.data.sequences import Files
from clipkit.errors import DataError
from clipkit.images import Stored, open_image, read_image
from clipkit.search.source import Images, read_images


class IndexedImages:
    """Images of an index, opened from its source.

    The source is read again when the first image is opened.

    Args:
        source: the source, as recorded in the manifest; None if the source was a Python object.
        name: name of the index, for error messages.
    """

    def __init__(self, source: str | None, name: str) -> None:
        self.source = source
        self.name = name

    @cached_property
    def _images(self) -> Images:
        if self.source is None:
            raise DataError(
                f"{self.name}: was made from a Python object, so its images cannot be opened; run clipkit embed "
                "with a file or folder"
            )
        return read_images(self.source)

    def file(self, location: str, position: int, content: str) -> Path | Stored:
        """Return the file of an image, after checking its content.

        Args:
            location: location of the image, from the index.
            position: position of the image in the source; negative if the source was a stream.
            content: SHA-256 of the image file, from the index.

        Raises:
            DataError: the image is missing or has changed, or the source was a stream or a Python object.
        """
        if position < 0:
            raise DataError(
                f"{self.name}: was made from a stream, whose images cannot be opened again; download the "
                "shards, and run clipkit embed with them"
            )
        files = self._images.files
        if position < len(files) and self._images.location(position) == location:
            file = files[position]
        else:
            file = self._moved(location)
        return file if self._is(file, content) else self._changed(location)

    def _moved(self, location: str) -> Path | Stored:
        files = self._images.files
        return files.folder / location if isinstance(files, Files) else self._changed(location)

    def _is(self, file: Path | Stored, content: str) -> bool:
        try:
            return hashlib.sha256(read_image(file)).hexdigest() == content
        except OSError:
            return False

    def _changed(self, location: str) -> Any:
        raise DataError(f"{location}: is missing or has changed since the index was written; run clipkit embed again")

    def open(self, location: str, position: int, content: str) -> Any:
        """Open an image as an RGB PIL image; arguments and errors as for `file`."""
        return open_image(self.file(location, position, content))
