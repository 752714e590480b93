"""Size limits for the members of tar files: a header can state any size, and the content is read into memory."""

import tarfile
from typing import Any, Self

from clipkit.image_formats import most_file_bytes

TEXTS = ("txt", "caption", "cls", "npy", "json")
"""Endings of members that are read as text."""
MOST_TEXT = 1 << 24
"""Largest size in bytes of a member that is read as text."""
_MOST_HEADER = 1 << 20
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class BoundedMember(tarfile.TarInfo):
    """Tar member whose long name and extended headers, which tarfile keeps in memory, are limited to one megabyte."""

    def _proc_member(self, archive: Any) -> Self:
        if self.size > _MOST_HEADER and self.type in _HEADERS:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def check_member(member: tarfile.TarInfo) -> None:
    """Check the size of a member before it is read.

    Raises:
        tarfile.ReadError: the member is larger than the limit for its kind.
    """
    ending = member.name.rpartition("/")[2].partition(".")[2].lower()
    most = MOST_TEXT if ending in TEXTS else most_file_bytes()
    if most is not None and member.size > most:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, more than the limit of {most:,}")
