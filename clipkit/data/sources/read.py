"""Rows from whatever a user names."""

import json
from collections.abc import Collection
from pathlib import Path

from clipkit.data.sources.columns import NAMES, Rows, Wanted, split_options
from clipkit.data.sources.delimited import read_delimited
from clipkit.data.sources.folders import read_folder
from clipkit.data.sources.json_lines import read_json_lines
from clipkit.data.sources.saved import read_hub, read_parquet, read_saved
from clipkit.data.sources.tars import read_tars
from clipkit.errors import DataError

KINDS = (
    ".csv, .tsv, .jsonl and .parquet files, folders of images with metadata or texts or in class folders, hf:NAME, "
    "folders saved by datasets, and .tar shards"
)
# Of a source as a whole, beside the names of columns.
_OPTIONS = ("split", "templates")


def _check_finished(manifest: Path) -> None:
    """See that a folder of shards is not one that `clipkit data prepare` has still to finish."""
    try:
        finished = json.loads(manifest.read_text(encoding="utf-8")).get("complete", True)
    except (OSError, ValueError, AttributeError):
        return
    if not finished:
        raise DataError(
            f"{manifest.parent}: is not finished yet; run clipkit data prepare --out {manifest.parent} again"
        )


def read_rows(source: str, needed: Collection[str], optional: Collection[str] = ()) -> Rows:
    """Rows of any source.

    Args:
        source: what the user wrote: a path, a pattern of shards or hf:NAME, with options after `?`.
        needed: roles without which it is of no use.
        optional: roles that are read where they are there.

    Raises:
        DataError: it is of no known kind, missing, broken, or lacks something.
    """
    name, options = split_options(source)
    unknown = [option for option in options if option not in (*NAMES, *_OPTIONS)]
    if unknown:
        raise DataError(f"{source}: {unknown[0]} is no option of data; options are {', '.join((*NAMES, *_OPTIONS))}")
    wanted = Wanted(source, options, needed, [role for role in optional if role not in needed])
    if "://" in name:
        raise DataError(
            f"{source}: lies at an address; shards there can be streamed for training (data.samples), for the rest "
            "fetch them"
        )
    if name.startswith("hf:"):
        return read_hub(name, wanted)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
            return read_saved(path, wanted) if saved else read_folder(path, wanted)
    except OSError as error:
        raise DataError(f"{source[:200]}: cannot be opened ({error.strerror}); check the path") from None
    _check_finished(path.parent / "prepared.json")
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return read_delimited(path, wanted)
        case ".jsonl":
            return read_json_lines(path, wanted)
        case ".parquet":
            return read_parquet(str(path), wanted)
        case ".tar":
            return read_tars(str(path), wanted)
    missing = "" if path.exists() else "there is no such file or folder; "
    raise DataError(f"{source}: {missing}data is read from {KINDS}; this is neither")
