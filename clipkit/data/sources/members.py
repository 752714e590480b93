"""Size limits for files in a tar file, which are read into memory. A damaged header can give any size."""

import tarfile
from typing import Any, Self

from clipkit.image_formats import most_file_bytes

TEXTS = ("txt", "caption", "cls", "npy", "json")
"""Extensions of the files in a tar file that are read as text."""
MOST_TEXT = 1 << 24
"""Largest size in bytes of a file that is read as text."""
_MOST_HEADER = 1 << 20
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class BoundedMember(tarfile.TarInfo):
    """Header of a file in a tar file. Long names and extended headers may have at most 1 MiB."""

    def _proc_member(self, archive: Any) -> Self:
        if self.size > _MOST_HEADER and self.type in _HEADERS:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, more than the limit of {_MOST_HEADER:,}")
        return super()._proc_member(archive)  # type: ignore[misc]


def check_member(member: tarfile.TarInfo) -> None:
    """Check the size of a file in a tar file before it is read.

    Raises:
        tarfile.ReadError: the file is larger than the limit for texts or for images.
    """
    ending = member.name.rpartition("/")[2].partition(".")[2].lower()
    most = MOST_TEXT if ending in TEXTS else most_file_bytes()
    if most is not None and member.size > most:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, more than the limit of {most:,}")
