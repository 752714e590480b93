"""Source `wds:`: datasets in CLIP_benchmark's layout (tar files, class names, prompts), from the Hub or a folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.data.prompts import read_lines
from clipkit.data.sources.columns import ClassList, Rows, Wanted, name_revision_and_split
from clipkit.data.sources.tars import literal, read_tars
from clipkit.errors import DataError, UnreachedError, one_line

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
_TYPE, _COUNT = "dataset_type.txt", "nshards.txt"


def read_wds(name: str, wanted: Wanted) -> Rows:
    """Read a dataset given as `wds:ORG/NAME[@REVISION][:SPLIT]` or `wds:FOLDER[:SPLIT]`; the default split is `test`.

    Raises:
        UnreachedError: the Hub cannot be reached or has no such dataset.
        DataError: the split or a file is missing, or a label is not one of the classes.
    """
    repository, revision, split = name_revision_and_split(name.removeprefix("wds:"))
    split = split or wanted.options.get("split", "test")
    folder = Path(repository).expanduser()
    if not folder.is_dir():
        folder = _fetch(name, repository, revision, split)
    return _read_split(name, folder, split, wanted)


def _fetch(name: str, repository: str, revision: str, split: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=["*.txt", f"{split}/*"],
            )
        )
    except Exception as error:  # the client raises errors of many kinds; all mean that the data is not available
        reason = one_line(error).partition(". ")[0].removesuffix(".")  # the first sentence of the long message
        raise UnreachedError(
            f"{name}: cannot be downloaded from the Hub ({reason}); check the name and the network"
        ) from None


def _read_split(name: str, folder: Path, split: str, wanted: Wanted) -> Rows:
    pattern = _shard_pattern(folder, split)
    kind = _first_line(folder / _TYPE, "classification").lower()
    if kind == "retrieval":
        rows = read_tars(pattern, wanted)
        captions = rows.columns.get("caption")
        lines = {} if captions is None else {"caption": _split_lines(captions)}
        return replace(rows, name=name, columns=rows.columns | lines)
    # Labels are used as captions, as for class folders.
    needed = [role for role in wanted.needed if role not in ("caption", "label")]
    rows = read_tars(pattern, replace(wanted, needed=[*needed, "label"]))
    names = read_lines(folder / CLASS_NAMES) if (folder / CLASS_NAMES).is_file() else None
    if kind == "multilabel" and names is None:
        raise DataError(f"{folder}: has no {CLASS_NAMES}, which a multilabel dataset needs; download the dataset again")
    classes = ClassList(
        [str(number) for number in range(len(names))] if names is not None else None,
        names,
        read_lines(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else None,
        is_multilabel=kind == "multilabel",
    )
    if pa.types.is_large_list(rows.columns["label"].type) and not classes.is_multilabel:
        raise DataError(
            f"{folder}: has images with several labels, but {_TYPE} does not contain the word multilabel; correct "
            "this file"
        )
    return replace(rows, name=name, classes=classes)


def _shard_pattern(folder: Path, split: str) -> str:
    file = folder / split / _COUNT
    if not file.is_file():
        raise DataError(f"{folder}: has no split {split} ({split}/{_COUNT} is missing); give another split")
    count = _first_line(file)
    if not count.isdecimal() or int(count) == 0:
        raise DataError(f"{file}: contains {count!r} instead of the number of shards; download the file again")
    return f"{literal(folder / split)}/{{0..{int(count) - 1}}}.tar"


def _first_line(file: Path, default: str | None = None) -> str:
    return default if default is not None and not file.is_file() else read_lines(file)[0]


def _split_lines(texts: pa.Array) -> pa.Array:
    """Split each text into lines, one caption per line. If no text has several lines, return the texts unchanged."""
    if pa.types.is_large_list(texts.type):
        return texts
    lines = pc.split_pattern(pc.utf8_trim_whitespace(texts), "\n").cast(pa.large_list(pa.large_string()))
    lengths = pc.list_value_length(lines).to_numpy()
    return texts if (lengths == np.ones(1)).all() else lines
