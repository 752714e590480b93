"""CSV and TSV files: columns found by name."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from clipkit.errors import DataError

IMAGE_COLUMNS = ("image", "filepath", "file_name", "filename", "file", "path", "image_path", "img")
CAPTION_COLUMNS = ("caption", "text", "title", "sentence", "description")
NEGATIVE_COLUMNS = ("negative_caption", "negative", "foil", "hard_negative")
PARAPHRASE_COLUMNS = ("paraphrase",)
LABEL_COLUMNS = ("label", "class", "category")


@dataclass(frozen=True)
class Table:
    """Rows of a file, and the columns asked for."""

    path: Path
    columns: dict[str, list[str]]


def split_options(source: str) -> tuple[Path, dict[str, str]]:
    """`photos.csv?image=file&caption=title` as a path and its options."""
    path, _, options = source.partition("?")
    return Path(path).expanduser(), dict(parse_qsl(options))


def read_table(
    source: str, wanted: Mapping[str, Sequence[str]], optional: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """Read the wanted columns of a CSV or TSV file.

    Args:
        source: a path, with options after `?` that name a column: `photos.csv?image=file`.
        wanted: for each role the names that its column may have, likeliest first.
        optional: roles that are read where the file has such a column.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or lacks a column.
    """
    path, options = split_options(source)
    roles = {**wanted, **(optional or {})}
    unknown = [option for option in options if option not in roles]
    if unknown:
        raise DataError(f"{source}: {unknown[0]} is no option of a table; options are {', '.join(roles)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = next(rows, None)
            if not header:
                raise DataError(f"{path}: is empty; its first line must name the columns, as image,caption")
            places = {
                role: _column(path, header, role, options.get(role), names)
                for role, names in roles.items()
                if role in wanted or role in options or {name.strip().lower() for name in header} & set(names)
            }
            columns: dict[str, list[str]] = {role: [] for role in places}
            for row in rows:
                if not row:
                    continue
                if len(row) <= max(places.values(), default=0):
                    raise DataError(
                        f"{path}: line {rows.line_num} has {len(row)} fields, the header has {len(header)}; mend it"
                    )
                for role, place in places.items():
                    columns[role].append(row[place])
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; paths are relative to the working directory") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not columns:
        raise DataError(f"{path}: has none of the columns {', '.join(roles)}; its columns are {', '.join(header)}")
    if not next(iter(columns.values())):
        raise DataError(f"{path}: has a header but no rows; there is nothing to read")
    return Table(path, columns)


def _column(path: Path, header: list[str], role: str, given: str | None, names: Sequence[str]) -> int:
    lower = [name.strip().lower() for name in header]
    if given is not None:
        if given.lower() in lower:
            return lower.index(given.lower())
        raise DataError(f"{path}: has no column {given}; its columns are {', '.join(header)}")
    for name in names:
        if name in lower:
            return lower.index(name)
    raise DataError(
        f"{path}: has no {role} column (one of {', '.join(names)}); its columns are {', '.join(header)}: "
        f"rename one, or name it as {path.name}?{role}=COLUMN"
    )


def existing_pictures(path: Path, names: Sequence[str]) -> list[Path]:
    """Picture paths, which are relative to the table's folder.

    Raises:
        DataError: some are not there; says how many and names the first.
    """
    pictures = [path.parent / name for name in names]
    missing = [picture for picture in pictures if not picture.is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of its {len(pictures)} pictures are missing, the first is {missing[0]}; "
            f"paths are relative to {path.parent}"
        )
    return pictures
