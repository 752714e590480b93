"""Rows of a source, and the roles of its columns, such as image, caption and label."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from clipkit.data.prompts import Templates
from clipkit.data.sources.choice import Peek, choice_finding, choose, columns_of_images
from clipkit.errors import ColumnError, DataError
from clipkit.findings import Finding
from clipkit.images import Stored

LONGEST_TEXT = 1_000_000
"""Maximum number of characters of a caption. Models read a few hundred; tokenizing a whole book would take minutes."""

# Accepted column names of each role, most likely first. To accept another name, add it here.
NAMES: Mapping[str, Sequence[str]] = {
    "image": (
        "image", "filepath", "file_name", "filename", "file", "path", "image_path", "image_name", "image_file", "img",
        "jpg", "jpeg", "png", "webp", "url", "image_url",
    ),
    "caption": ("caption", "captions", "text", "title", "sentence", "sentences", "description", "comment"),
    "negative_caption": ("negative_caption", "negative", "foil", "hard_negative"),
    "paraphrase": ("paraphrase", "translation"),
    "label": ("label", "class", "category"),
    "group": ("group",),
}  # fmt: skip


@dataclass(frozen=True)
class ClassList:
    """Classes of a source in the order of the source, including classes without images."""

    labels: Sequence[str] | None = None
    """Values of the label column, in the order of the classes; None: all labels that occur, in alphabetical order."""
    names: Sequence[str] | None = None
    """Class names for prompts; None: use the labels."""
    templates: Templates | None = None
    """Prompt templates that the source contains; None: it contains none."""
    is_multilabel: bool = False
    """True if an image may have any number of classes, including none."""


@dataclass(frozen=True)
class Rows:
    """R rows of a source: images, and columns by role (such as caption or label)."""

    name: str
    columns: dict[str, pa.Array]
    """(R,) columns of strings or lists of strings, by role; images are separate."""
    images: Sequence[Path | Stored] | None = None
    """(R,) image of each row; None for a source without images."""
    keys: pa.Array | None = None
    """(R,) values that are equal for rows with the same image."""
    found: dict[str, str] = field(default_factory=dict)
    """Name of the column for each role."""
    row: str = "row"
    """Noun for a row in messages, e.g. "row" or "sample"; messages count rows from 1."""
    classes: ClassList | None = None
    findings: Sequence[Finding] = ()
    """Findings of the reader, e.g. about files that were left out or a column that was chosen."""


@dataclass(frozen=True)
class Wanted:
    """Roles (such as image or caption) that a reader looks for in a source, and the options of the source.

    Args:
        source: source as given by the user, for messages.
        options: options that the user wrote after `?`, e.g. {"image": "file"} for `?image=file`.
        needed: roles that the source must have.
        optional: roles that are read if they are present.
        names: accepted column names of each role.
    """

    source: str
    options: Mapping[str, str]
    needed: Collection[str]
    optional: Collection[str]
    names: Mapping[str, Sequence[str]] = field(default_factory=lambda: NAMES)
    choices: list[Finding] = field(default_factory=list)
    """Findings about columns that were chosen among several; readers add them."""

    @property
    def roles(self) -> list[str]:
        """All roles, needed and optional."""
        return [*self.needed, *self.optional]

    def needs(self, role: str, present: Collection[str]) -> bool:
        """Return whether the source must have a column for a role, e.g. caption.

        If labels are read and a label column is present, no caption column is needed. `present` contains the column
        names of the source in lower case.
        """
        if role == "caption" and "label" in self.roles:
            given = self.options.get("label")
            labels = self.names["label"] if given is None else [given.lower()]
            return role in self.needed and not any(label in present for label in labels)
        return role in self.needed

    def columns_among(self, source: object, header: Sequence[str], peek: Peek, folder: Path = Path()) -> dict[str, str]:
        """Find the column of each role; return role -> column name, without roles that have no column.

        If several columns have an accepted name for a role, the column with the best values is used (see `rank_of`).
        A finding reports the choice. If images are needed and no column has an accepted name for images, the only
        column that contains images is used.

        Args:
            source: name of the source, for messages.
            header: names of the columns.
            peek: function from a column name to the first values of the column.
            folder: folder to which image paths are relative.

        Raises:
            DataError: a needed column or a column named by the user is missing, or two columns have the same name.
        """
        lower = [name.strip().lower() for name in header]
        columns = _listed(header)
        found: dict[str, str] = {}
        choices: list[str] = []
        for role in self.roles:
            given = self._given(role, lower)
            if given is not None and given not in lower:
                raise DataError(f"{source}: has no column {self.options[role]}; use one of its columns: {columns}")
            matches = [name for name in ([given] if given is not None else self.names[role]) if name in lower]
            candidates = [header[lower.index(name)] for name in matches]
            if not candidates and role == "image" and role in self.needed:
                candidates = columns_of_images(header, peek, folder)
                candidates = candidates if len(candidates) == 1 else []
            if candidates:
                found[role], choice = choose(role, candidates, peek, folder)
                count = lower.count(found[role].strip().lower())
                if count > 1:
                    raise DataError(f"{source}: has {count} columns named {found[role]}; rename all but one")
                choices += [choice] * (len(candidates) > 1 or not matches)
            elif self.needs(role, lower):
                raise ColumnError(
                    f"{source}: has no {role} column (accepted names: {', '.join(self.names[role])}), and "
                    f"its columns are {columns}; rename the column that contains the {role}, or give the name "
                    f"of this column with {self.advice(role)}"
                )
        if not found:
            raise DataError(
                f"{source}: has none of the columns {', '.join(self.roles)}, and its columns are {columns}; give "
                f"the name of a column with {self.advice(self.roles[0])}"
            )
        if choices:
            advice = f"to use another column, give the name of this column with {self.advice(next(iter(found)))}"
            self.choices.append(choice_finding(str(source), choices, advice))
        return found

    def _given(self, role: str, header: Sequence[str]) -> str | None:
        """Return the column that the user named for a role, in lower case; None if the user named none.

        Example: `file` for `?image=file`. URL escapes such as %20 are decoded if no column has the name as written.
        """
        given = self.options.get(role)
        if given is None:
            return None
        return next((name for name in (given.lower(), unquote(given).lower()) if name in header), given.lower())

    def advice(self, role: str) -> str:
        """Return an example of how to name the column of a role, quoted for a shell: `'photos.csv?image=COLUMN'`."""
        return f"'{split_options(self.source)[0]}?{role}=COLUMN'"


def _listed(header: Sequence[str]) -> str:
    """Return the column names in one line, shortened for messages."""
    names = [" ".join(name.split())[:40] for name in header[:20]]
    return ", ".join(names) + " …" * (len(header) > len(names))


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """Split a source such as `photos.csv?image=file&caption=title` into its name and its options.

    A question mark in the name of an existing file or folder belongs to the name.

    Raises:
        DataError: the part after the question mark is not NAME=VALUE&NAME=VALUE, or contains an option twice.
    """
    if _exists_in_source(source):
        return source, {}
    ends = [position for position, character in enumerate(source) if character == "?"]
    end = next((end for end in reversed(ends) if _exists_in_source(source[:end])), ends[0] if ends else len(source))
    name, text = source[:end], source[end + 1 :]
    options: dict[str, str] = {}
    for option in text.split("&") if text else []:
        key, _, value = option.partition("=")
        if not key or not value:
            raise DataError(f"{source}: {option or '&'} is not an option; write NAME=VALUE after the question mark")
        if key in options:
            raise DataError(f"{source}: has the option {key} twice; give it only once")
        options[key] = value if key in NAMES or exists(value) else unquote(value)
    return name, options


def exists(name: str) -> bool:
    """Return whether a file or folder with this name exists; False for URLs and invalid paths."""
    try:
        return bool(name) and "://" not in name and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # invalid name, or a home folder that is unknown
        return False


def _exists_in_source(source: str) -> bool:
    """Return whether the file or folder in a source exists, e.g. the folder "shards" in "wds:shards:train"."""
    prefix, _, rest = source.partition(":")
    return exists(source) or (prefix in ("hf", "wds") and exists(name_revision_and_split(rest)[0]))


def name_revision_and_split(given: str) -> tuple[str, str, str]:
    """Split `NAME[@REVISION][:SPLIT]` into its three parts; a missing part is "".

    The characters `@` and `:` in the name of an existing file or folder belong to the name.

    Example:
        >>> name_revision_and_split("me/data@v1:test"), name_revision_and_split("me/data")
        (('me/data', 'v1', 'test'), ('me/data', '', ''))
    """
    if exists(given):
        return given, "", ""
    name, colon, split = given.rpartition(":")
    name, split = (name, split) if colon and "?" not in split else (given, "")
    if exists(name):
        return name, "", split
    name, _, revision = name.partition("@")
    return name, revision, split
