"""Checks before an output is written: only files and runs that clipkit wrote are ever replaced."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from clipkit.errors import OutputError
from clipkit.opening import open_file
from clipkit.parsing import parse_json
from clipkit.run_files import RunFiles

PAGE_MARK = b'<meta name="generator" content="clipkit">'
IMAGE_MARK = ("Software", "clipkit")
"""Metadata of PNG files that clipkit writes."""


def check_replaceable(file: Path, inputs: Iterable[str | Path] = ()) -> None:
    """Check that a file can be written without overwriting data of the user.

    An existing file is replaced if it is empty, or if clipkit wrote it: a result, a comparison, findings, a report,
    predictions, an explanation or a preview.

    Raises:
        OutputError: the file cannot be written, was not written by clipkit, is one of the command's `inputs`, or
            belongs to a run.
    """
    folder = file.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{file}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{file}: cannot be written because the folder {folder} is read-only; give another file")
    run = run_of(file)
    if run is not None:
        raise OutputError(f"{file}: belongs to the run {run}; give another file")
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}); give another file") from None
    if stat.S_ISDIR(mode):
        raise OutputError(f"{file}: is a folder; give the path of a file")
    if stat.S_ISLNK(mode):
        raise OutputError(f"{file}: is a link to {file.readlink()}; give a path that is not a link")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{file}: is not a regular file; give another file")
    for source in inputs:
        if any(_is_same(file, name) for name in (str(source), str(source).partition("?")[0])):
            raise OutputError(f"{file}: would overwrite {source}, which this command also reads; give another file")
    if not _is_written_by_clipkit(file):
        raise OutputError(f"{file}: exists and is not an output of clipkit; give another file, or delete it first")


def check_new(path: Path) -> None:
    """Check that nothing exists at a path.

    Raises:
        OutputError: the path exists.
    """
    if path.is_symlink() or path.exists():
        raise OutputError(f"{path}: already exists; give a new path")


def check_no_run(folder: RunFiles, resume: bool, overwrite: bool) -> None:
    """Check that a folder contains no run, unless the run is to be continued or replaced.

    Raises:
        OutputError: the folder contains a run.
    """
    if folder.recipe.exists() and not (resume or overwrite):
        raise OutputError(
            f"{folder.path}: already contains a run; add --resume to continue that run, add --overwrite to "
            "replace it, or give another output folder"
        )


def run_of(path: Path) -> Path | None:
    """Return the run folder of a path that a run writes, e.g. RUN for RUN/metrics.jsonl.

    The result is None for any other path, even in a run folder, e.g. RUN/notes.md.
    """
    path = path.absolute().parent.resolve() / path.name
    for folder in path.parents:
        run = RunFiles(folder)
        if run.is_marked and any(path.is_relative_to(part) for part in (run.marker, *run.files, *run.folders)):
            return folder
    return None


def _is_same(file: Path, source: str) -> bool:
    try:
        return file.samefile(Path(source).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def _is_written_by_clipkit(file: Path) -> bool:
    try:
        with open_file(file) as opened:
            head = opened.read(1 << 16)
            if not head:
                return True
            if head.startswith(b"PAR1"):
                return _is_predictions(file)
            if head.startswith(b"\x89PNG"):
                return _is_preview(opened)
            if head.startswith(b"{"):
                return _is_result(parse_json(head + opened.read()))
    except Exception:  # damaged, so clipkit did not write it
        return False
    if file.suffix == ".md":  # the table of a suite
        return file.with_name("results.json").is_file() and _is_written_by_clipkit(file.with_name("results.json"))
    return PAGE_MARK in head


def _is_preview(opened: BinaryIO) -> bool:
    from clipkit.image_formats import open_by_pillow

    with open_by_pillow(opened) as image:
        return image.info.get(IMAGE_MARK[0]) == IMAGE_MARK[1]


def _is_predictions(file: Path) -> bool:
    from pyarrow.parquet import read_schema

    return b"clipkit" in (read_schema(file).metadata or {})


def _is_result(values: object) -> bool:
    if not isinstance(values, dict):
        return False
    kinds = (
        {"task", "data", "metrics"},
        {"task", "data", "findings"},
        {"suite", "models", "rows"},
        {"format", "suite", "rows"},
        {"model", "image", "method", "texts"},
    )
    return any(kind <= set(values) for kind in kinds)
