"""Folders that contain one dataset in several files: Parquet files or tar shards."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from clipkit.data.sources.columns import Wanted
from clipkit.errors import DataError
from clipkit.findings import Finding

_SPLIT = re.compile(r"(?<![a-z])(train|test|validation|val|valid|dev|eval)(ing)?(?![a-z])", re.IGNORECASE)


def files_of_folder(name: str, ending: str) -> list[Path]:
    """Return the files in a folder with an extension, e.g. `.tar`; if there are none, those of the subfolder `data`.

    Return [] for Parquet files beside images or folders, because such a folder is read as an image folder.
    """
    folder = Path(name)
    for place in (folder, folder / "data"):
        files = [file for file in sorted(place.glob("*")) if not file.name.startswith(".")] if place.is_dir() else []
        parts = [file for file in files if file.suffix.lower() == ending and file.stem != "metadata"]
        if parts:
            images = Image.registered_extensions()
            rest = [file for file in files if file.is_dir() or file.suffix.lower() in images]
            return [] if rest and ending != ".tar" else parts
    return []


def parts_of_split(name: str, ending: str, wanted: Wanted) -> list[Path]:
    """Return the files of a folder whose names contain the split given by the option `?split=`.

    Without the option, return all files. Then all names must contain the same split, or none may contain a split.

    Raises:
        DataError: the file names contain several splits and none is chosen, or the given split is missing.
    """
    of_split: dict[str, list[Path]] = {}
    for file in files_of_folder(name, ending):
        match = _SPLIT.search(file.stem)
        of_split.setdefault(match[1].lower() if match else "", []).append(file)
    given = wanted.options.get("split")
    split = given.lower() if given is not None else next(iter(of_split)) if len(of_split) == 1 else None
    if split in of_split:
        _report_others(name, of_split, wanted)
        return of_split[split]
    several_splits = "has files of several splits, or files with and without a split in their names"
    problem = several_splits if given is None else f"has no split {given}"
    several = ", ".join(f"'{name}?split={one}'" for one in of_split if one)
    raise DataError(f"{name}: {problem}; use one of {several or name}, or a pattern such as '{name}/*{ending}'")


def _report_others(name: str, of_split: Mapping[str, Sequence[Path]], wanted: Wanted) -> None:
    """Add a finding that lists the ignored files of the folder, e.g. a README."""
    parts = {file for files in of_split.values() for file in files}
    others = sorted(file.name for file in next(iter(parts)).parent.iterdir() if file not in parts)
    if others:
        shown = ", ".join(others[:3]) + ", …" * (len(others) > 3)
        advice = "if these files belong to the data, give a folder or pattern that includes them"
        message = f"{name}: {len(others):,} other files are ignored ({shown})"
        wanted.choices.append(
            Finding("left_out", "note", message, advice, count=len(others), examples=tuple(others[:3]))
        )
