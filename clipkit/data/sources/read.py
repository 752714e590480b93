"""Table of the kinds of data sources, and functions that read rows from any of them.

To add a source, write a reader `(name, wanted) -> Rows` in a new file, and add a row to `SOURCES`.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from clipkit.data.sources.columns import NAMES, Rows, Wanted, split_options
from clipkit.data.sources.delimited import read_delimited
from clipkit.data.sources.emoji import read_twemoji
from clipkit.data.sources.folders import read_folder
from clipkit.data.sources.json_rows import read_json, read_json_lines
from clipkit.data.sources.parquet_files import read_parquet, read_parquet_folder
from clipkit.data.sources.parts import files_of_folder
from clipkit.data.sources.saved import is_saved, read_hub, read_saved
from clipkit.data.sources.tars import read_tar_folder, read_tars
from clipkit.data.sources.urls import is_address
from clipkit.data.sources.wds import read_wds
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.images import kind_of
from clipkit.opening import read_text
from clipkit.parsing import parse_json

# Options of a source; all others are roles with the name of a column, e.g. image=file.
_OPTIONS = ("split", "templates", "classes")


@dataclass(frozen=True)
class Source:
    """A kind of data source with its reader."""

    written: str
    """Notation of the source for messages, e.g. hf:NAME[:SPLIT]."""
    matches: Callable[[str], bool]
    """Function that returns True for the name of a source of this kind."""
    read: Callable[[str, Wanted], Rows]
    has_splits: bool = False
    """True if the option `?split=` is supported."""


def _begins(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _ends(*endings: str) -> Callable[[str], bool]:
    return lambda name: name.lower().endswith(endings)


def _holds(ending: str) -> Callable[[str], bool]:
    return lambda name: Path(name).is_dir() and bool(files_of_folder(name, ending))


# The first row that matches the name of a source reads the source.
SOURCES = (
    Source("hf:NAME[:SPLIT]", _begins("hf:"), read_hub, has_splits=True),
    Source("wds:ORG/NAME[:SPLIT]", _begins("wds:"), read_wds, has_splits=True),
    Source("twemoji:groups, twemoji:LANGUAGE", _begins("twemoji:"), read_twemoji, has_splits=True),
    Source("folders written by save_to_disk", is_saved, read_saved, has_splits=True),
    Source("folders of .tar shards", _holds(".tar"), read_tar_folder, has_splits=True),
    Source("folders of .parquet files", _holds(".parquet"), read_parquet_folder, has_splits=True),
    Source("folders of images", lambda name: Path(name).is_dir(), read_folder, has_splits=True),
    Source(".csv, .tsv", _ends(".csv", ".tsv"), read_delimited),
    Source(".jsonl", _ends(".jsonl"), read_json_lines),
    Source(".json", _ends(".json"), read_json),
    Source(".parquet", _ends(".parquet"), read_parquet),
    Source(".tar", _ends(".tar"), read_tars),
)


def read_rows(source: object, needed: Collection[str], optional: Collection[str] = ()) -> Rows:
    """Read the rows of any source.

    Args:
        source: source as given by the user, with options after `?`, or a Python object (see `read_object`).
        needed: roles that the source must have.
        optional: roles that are read if they are present.

    Raises:
        DataError: the source is unsupported, missing or damaged, or a needed role is missing.
    """
    optional = [role for role in optional if role not in needed]
    if not isinstance(source, str | Path):
        from clipkit.data.sources.objects import read_object  # imports torch

        wanted = Wanted(kind_of(source), {}, needed, optional)
        return _with_choices(read_object(source, wanted), wanted)
    source = str(source)
    name, options = split_options(source)
    unknown = [option for option in options if option not in (*NAMES, *_OPTIONS)]
    if unknown:
        raise DataError(f"{source}: unknown option {unknown[0]}; use one of {', '.join((*NAMES, *_OPTIONS))}")
    wanted = Wanted(source, options, needed, optional)
    rows = rows_of(name, wanted)
    unused = next((role for role in NAMES if role in options and role in wanted.roles and role not in rows.found), None)
    if unused is not None:
        raise DataError(
            f"{source}: has no columns, so the option {unused}={options[unused]} has no effect; leave out this option"
        )
    return _with_choices(rows, wanted)


def _with_choices(rows: Rows, wanted: Wanted) -> Rows:
    """Add the findings of `wanted.choices` to the rows, e.g. about a column that was chosen among several."""
    choices = {finding.name: finding for finding in reversed(wanted.choices)}  # the first of each name
    return replace(rows, findings=[*rows.findings, *choices.values()])


def check_exists(source: str) -> None:
    """Check that a file or folder exists, without opening it. Patterns and sources such as hf: are not checked.

    Raises:
        DataError: the file or folder is missing.
    """
    name = split_options(source)[0]
    path = Path(name).expanduser()
    is_table = _ends(".csv", ".tsv", ".json", ".jsonl", ".parquet")(name)
    try:
        exists = is_file(path) if is_table else path.exists()
    except OSError:  # the name is too long for a path
        exists = False
    if not exists and not re.search(r"^\w+:|[*?[{]", name):
        raise DataError(f"{source[:200]}: file not found; paths are relative to the working directory")


def rows_of(name: str, wanted: Wanted) -> Rows:
    """Read the rows of a source, given by its name without options; the options are in `wanted`.

    Raises:
        DataError: as for `read_rows`.
    """
    if is_address(name):
        raise DataError(
            f"{wanted.source}: is a URL, but URLs are supported only for training on .tar shards, with data.samples "
            "set to the number of samples; download the data and give its path"
        )
    if "\0" in name:
        raise DataError(f"{wanted.source[:200]}: is not a valid file name; check the path")
    name = str(Path(name).expanduser())
    try:
        source = next((source for source in SOURCES if source.matches(name)), None)
    except OSError as error:
        raise DataError(f"{wanted.source[:200]}: cannot be opened ({error.strerror}); check the path") from None
    if source is None:
        missing = "not a supported source" if Path(name).exists() else "no such file or folder"
        raise DataError(
            f"{wanted.source}: {missing}; give one of the supported sources: "
            f"{', '.join(source.written for source in SOURCES)}"
        )
    if "split" in wanted.options and not source.has_splits:
        raise DataError(f"{wanted.source}: has no splits, so the option split has no effect; leave out this option")
    for folder in (Path(name).parent, Path(name)):
        _check_is_finished(folder / "prepared.json")
    try:
        return source.read(name, wanted)
    except UnicodeEncodeError as error:
        raise DataError(
            f"{wanted.source}: contains the name {error.object[:80]!r}, which is not UTF-8; rename this file or folder"
        ) from None


def _check_is_finished(manifest: Path) -> None:
    """Raise an error if a manifest states that `clipkit data prepare` has not written all shards."""
    try:
        finished = parse_json(read_text(manifest, "utf-8")).get("complete", True)
    except (OSError, ValueError, AttributeError):
        return
    if not finished:
        raise DataError(
            f"{manifest.parent}: the shards are incomplete; run clipkit data prepare --out {manifest.parent} again"
        )
