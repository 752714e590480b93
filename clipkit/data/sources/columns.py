"""What the rows of a source have, by the role that each column plays."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.images import Stored

# The names that a column may have, likeliest first; more of them go here.
NAMES: Mapping[str, Sequence[str]] = {
    "image": (
        "image", "filepath", "file_name", "filename", "file", "path", "image_path", "img", "url", "image_url", "jpg",
    ),
    "caption": ("caption", "captions", "text", "title", "sentence", "sentences", "description"),
    "negative_caption": ("negative_caption", "negative", "foil", "hard_negative"),
    "paraphrase": ("paraphrase",),
    "label": ("label", "class", "category"),
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """R rows of a source."""

    name: str
    columns: dict[str, pa.Array]
    """By role, but for image: strings, or lists of strings."""
    images: Sequence[Path | Stored] | None = None
    """(R,) each row's image, where there are any."""
    keys: pa.Array | None = None
    """(R,) equal where rows have the same image."""
    found: dict[str, str] = field(default_factory=dict)
    """By role the name of its column."""
    row: str = "row"
    """What a row is called in messages; they are counted from 1."""


@dataclass(frozen=True)
class Wanted:
    """The roles that a reader looks for.

    Args:
        source: as the user wrote it, for messages.
        options: what the user wrote after `?`.
        needed: roles without which the source is of no use.
        optional: roles that are read where they are there.
    """

    source: str
    options: Mapping[str, str]
    needed: Collection[str]
    optional: Collection[str]

    def columns_among(self, source: object, header: Sequence[str]) -> dict[str, str]:
        """For each role the column that plays it.

        Raises:
            DataError: a needed one is not there, one that was named is not, or there are two of one name.
        """
        lower = [name.strip().lower() for name in header]
        has = _shown(header)
        found = {}
        for role in [*self.needed, *self.optional]:
            given = self.options.get(role)
            if given is not None and given.lower() not in lower:
                raise DataError(f"{source}: has no column {given}; its columns are {has}")
            names = [given.lower()] if given is not None else NAMES[role]
            here = next((name for name in names if name in lower), None)
            if here is not None:
                if lower.count(here) > 1:
                    raise DataError(f"{source}: has {lower.count(here)} columns {here}; rename all but one")
                found[role] = header[lower.index(here)]
            elif role in self.needed:
                raise DataError(
                    f"{source}: has no {role} column (one of {', '.join(names)}); its columns are "
                    f"{has}: rename one, or name it as {Path(str(source)).name}?{role}=COLUMN"
                )
        if not found:
            roles = [*self.needed, *self.optional]
            raise DataError(
                f"{source}: has none of the columns {', '.join(roles)}; its columns are {has}: name one "
                f"as {Path(str(source)).name}?{roles[0]}=COLUMN"
            )
        return found


def _shown(header: Sequence[str]) -> str:
    """Names of columns in one line, whatever they are."""
    names = [" ".join(name.split())[:40] for name in header[:20]]
    return ", ".join(names) + " …" * (len(header) > len(names))


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """`photos.csv?image=file&caption=title` as what it names and its options."""
    name, _, options = source.partition("?")
    return name, dict(parse_qsl(options))
