"""Rows of a source, and the roles of its columns: image, caption, label and others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow as pa

from clipkit.data.prompts import Templates
from clipkit.errors import ColumnError, DataError
from clipkit.images import Stored

# Accepted column names of each role, most likely first. To accept another name, add it here.
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
class ClassList:
    """Classes that a source lists explicitly, in the order of the source; some may have no images."""

    labels: Sequence[str] | None = None
    """Values of the label column, in the order of the classes; None: all labels that occur, in alphabetical order."""
    names: Sequence[str] | None = None
    """Class names for prompts; None: use the labels."""
    templates: Templates | None = None
    """Prompts that the source contains."""
    is_multilabel: bool = False
    """True if an image may have any number of classes, including none."""


@dataclass(frozen=True)
class Rows:
    """R rows of a source, with their columns by role."""

    name: str
    columns: dict[str, pa.Array]
    """Columns by role, except the image column: strings, or lists of strings."""
    images: Sequence[Path | Stored] | None = None
    """(R,) image of each row; None for a source without images."""
    keys: pa.Array | None = None
    """(R,) values that are equal for rows with the same image."""
    found: dict[str, str] = field(default_factory=dict)
    """Column name for each role."""
    row: str = "row"
    """Noun for a row in messages, which count rows from 1."""
    classes: ClassList | None = None


@dataclass(frozen=True)
class Wanted:
    """Roles of columns that a reader must or may read.

    Args:
        source: source as given by the user, for messages.
        options: options that the user wrote after `?`.
        needed: roles that the source must have.
        optional: roles that are read if they are present.
        names: accepted column names of each role.
    """

    source: str
    options: Mapping[str, str]
    needed: Collection[str]
    optional: Collection[str]
    names: Mapping[str, Sequence[str]] = field(default_factory=lambda: NAMES)

    @property
    def roles(self) -> list[str]:
        """All roles, needed and optional."""
        return [*self.needed, *self.optional]

    def columns_among(self, source: object, header: Sequence[str]) -> dict[str, str]:
        """Map each role to its column name, for roles whose column is present.

        Raises:
            DataError: a needed column or a column named by the user is missing, or two columns have the same name.
        """
        lower = [name.strip().lower() for name in header]
        columns = _listed(header)
        found = {}
        for role in self.roles:
            given = self.options.get(role)
            if given is not None and given.lower() not in lower:
                raise DataError(f"{source}: has no column {given}; use one of its columns: {columns}")
            names = [given.lower()] if given is not None else self.names[role]
            match = next((name for name in names if name in lower), None)
            if match is not None:
                if lower.count(match) > 1:
                    raise DataError(f"{source}: has {lower.count(match)} columns named {match}; rename all but one")
                found[role] = header[lower.index(match)]
            elif role in self.needed:
                raise ColumnError(
                    f"{source}: has no {role} column (one of {', '.join(names)}); its columns are "
                    f"{columns}: rename one, or specify it with {Path(str(source)).name}?{role}=COLUMN"
                )
        if not found:
            raise DataError(
                f"{source}: has none of the columns {', '.join(self.roles)}; its columns are {columns}: specify "
                f"one with {Path(str(source)).name}?{self.roles[0]}=COLUMN"
            )
        return found


def _listed(header: Sequence[str]) -> str:
    """Return the column names in one line, shortened to a readable length."""
    names = [" ".join(name.split())[:40] for name in header[:20]]
    return ", ".join(names) + " …" * (len(header) > len(names))


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """Split `photos.csv?image=file&caption=title` into its name and its options.

    A name that exists is that file or folder, even if it contains question marks.

    Raises:
        DataError: the part after the question mark is not a list of options NAME=VALUE, or repeats one.
    """
    if exists(source):
        return source, {}
    ends = [position for position, character in enumerate(source) if character == "?"]
    end = next((end for end in reversed(ends) if exists(source[:end])), ends[0] if ends else len(source))
    name, text = source[:end], source[end + 1 :]
    options: dict[str, str] = {}
    for option in text.split("&") if text else []:
        given = dict(parse_qsl(option, keep_blank_values=True))
        if not given or "" in given or "" in given.values():
            raise DataError(f"{source}: {option or '&'} is not an option; write NAME=VALUE after the question mark")
        if options.keys() & given.keys():
            raise DataError(f"{source}: has the option {next(iter(given))} twice; remove one")
        options |= given
    return name, options


def exists(name: str) -> bool:
    """Return whether a name, which may contain any characters, is an existing file or folder."""
    try:
        return bool(name) and "://" not in name and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # invalid name, or a home folder that is unknown
        return False
