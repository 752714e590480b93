"""Reader of image folders with metadata tables, a text file per image, class folders, or only images."""

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from clipkit.data.prompts import paired_names, read_lines
from clipkit.data.sequences import Files
from clipkit.data.sources.columns import ClassList, Rows, Wanted
from clipkit.data.sources.delimited import read_delimited
from clipkit.data.sources.json_rows import read_json_lines, strings_or_lists
from clipkit.data.sources.parquet_files import read_parquet
from clipkit.data.sources.walk import Walk, walk
from clipkit.data.sources.wds import CLASS_NAMES, TEMPLATES
from clipkit.errors import DataError
from clipkit.findings import Finding, counted, finding_about
from clipkit.opening import read_text

_METADATA = {
    "metadata.csv": read_delimited,
    "metadata.jsonl": read_json_lines,
    "metadata.parquet": read_parquet,
}
# Folders with these names are splits, not classes, if the folder has several of them or no other folders.
_SPLITS = {
    "train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "held_out",
    "holdout",
}  # fmt: skip


def read_folder(name: str, wanted: Wanted) -> Rows:
    """Read a folder of images, with captions or labels from tables, text files or class folders.

    The captions or labels are from the first of these that the folder contains:

    - metadata tables (metadata.csv, .jsonl or .parquet) in the folder or its subfolders. Image paths are relative to
      the table.
    - a .txt file per image, with the name of the image. Each nonempty line is a caption.
    - class folders. The class of an image is the top-level folder of its path, e.g. `cat` for `cat/1.jpg`.

    Beside class folders, `classnames.txt` may contain one class name per line (see `paired_names`), and
    `zeroshot_classification_templates.txt` prompt templates. If neither captions nor labels are needed, images may be
    outside of class folders; then no image has a class. If there are several splits, e.g. folders `train` and `test`,
    the option `?split=` chooses one. Hidden files are ignored (see `walk`).

    Raises:
        DataError: there are no images, the needed captions or labels are missing, or no split is chosen.
    """
    path = Path(name)
    tree = walk(path)
    if any(table in tree.files for table in _METADATA):
        return _of_split(path, _with_tables(path, tree, wanted), wanted.options.get("split"))
    split = _split_among(path, tree, wanted.options.get("split"))
    if split is not None:
        inside = replace(wanted, options={key: value for key, value in wanted.options.items() if key != "split"})
        return _with_names_of(path, read_folder(str(path / split), inside))
    if any(PurePosixPath(file).name in _METADATA for file in tree.files):
        return _with_tables(path, tree, wanted)
    texts = {file.removesuffix(".txt") for file in tree.files if file.endswith(".txt")}
    has_text = [posixpath.splitext(image)[0] in texts for image in tree.images]
    if "caption" in (*wanted.needed, *wanted.optional) and any(has_text):
        return _with_texts(path, tree, has_text)
    return _without_captions(path, tree, wanted)


def _split_among(path: Path, tree: Walk, given: str | None) -> str | None:
    """Return the name of the split to read; None if the folder has no splits.

    Raises:
        DataError: the split `given` is missing, or `given` is None and there are several splits.
    """
    tables = [file for file in tree.files if PurePosixPath(file).name in _METADATA]
    data = [*tree.images, *tables]
    tops = list(dict.fromkeys(file.partition("/")[0] for file in data if "/" in file))
    if given is not None:
        if not any(file.startswith(f"{given}/") for file in data):
            raise DataError(f"{path}: has no split {given}; use one of its folders: {', '.join(tops[:20])}")
        return given
    splits = [folder for folder in tops if folder.lower() in _SPLITS]
    if any("/" not in file for file in data) or not splits or (len(splits) == 1 and len(tops) > 1):
        return None
    if len(splits) > 1:
        raise DataError(f"{path}: has several splits; use one of {', '.join(f'{path}?split={one}' for one in tops)}")
    return splits[0]


def _with_names_of(path: Path, rows: Rows) -> Rows:
    """Add class names and prompt templates from the parent folder of a split to the rows of the split.

    Class names and templates in the split itself are not replaced.
    """
    if rows.classes is None or rows.classes.labels is None:
        return rows
    beside = _class_list(path, rows.classes.labels)
    names = rows.classes if rows.classes.names is not None else beside
    return replace(rows, classes=replace(names, templates=rows.classes.templates or beside.templates))


def _of_split(path: Path, rows: Rows, split: str | None) -> Rows:
    """Return the rows of a metadata table whose images are in the folder of a split.

    If `split` is None, return all rows, with a finding if their images are in folders of several splits.
    """
    if not isinstance(rows.images, Files):
        return rows
    names = [posixpath.normpath(name) for name in rows.images.names]
    if split is None:
        splits = [top for top in dict.fromkeys(name.partition("/")[0] for name in names) if top.lower() in _SPLITS]
        message = f"{path}: the metadata table lists images of several splits ({', '.join(splits)}), and all are used"
        mixed = Finding(
            "mixed_splits", "warning", message, f"choose one split, e.g. {path}?split={''.join(splits[:1])}"
        )
        return replace(rows, findings=[*rows.findings, mixed]) if len(splits) > 1 else rows
    kept = pa.array(np.flatnonzero([name.startswith(f"{split}/") for name in names]))
    if not len(kept):
        raise DataError(f"{path}: its metadata table lists no image in the folder {split}; give another split")
    columns = {role: column.take(kept) for role, column in rows.columns.items()}
    inside = rows.images.names.column.take(kept)
    return replace(rows, columns=columns, images=Files.of(path, inside), keys=inside)


def _with_tables(path: Path, tree: Walk, wanted: Wanted) -> Rows:
    """Read the metadata table of the folder; if it has none, read the metadata tables of its subfolders."""
    folders: dict[str, str] = {}
    for kind in _METADATA:
        for file in tree.files:
            folder, _, table = file.rpartition("/")
            if table == kind:
                folders.setdefault(folder, file)
    used = [folders[""]] if "" in folders else sorted(folders.values())
    parts = [_METADATA[PurePosixPath(file).name](str(path / file), wanted) for file in used]
    first = parts[0]
    for file, part in zip(used, parts, strict=True):
        if part.columns.keys() != first.columns.keys() or (part.images is None) != (first.images is None):
            raise DataError(
                f"{path / file}: has different columns from {path / used[0]}; use the same columns in all metadata "
                "tables, or give only one of the folders"
            )
    columns = {role: _joined([part.columns[role] for part in parts]) for role in first.columns}
    listed = [part for part in parts if part.classes is not None]
    name = first.name if len(parts) == 1 else str(path)
    rows = replace(first, name=name, columns=columns, classes=listed[0].classes if listed else None)
    if first.images is None or (len(parts) == 1 and not isinstance(first.images, Files)):
        return rows
    names: list[str] = []
    for file, part in zip(used, parts, strict=True):
        folder = file.rpartition("/")[0]
        if not isinstance(part.images, Files):
            raise DataError(
                f"{path / file}: contains the images themselves, not file names; put such tables into one folder and "
                "give FOLDER/*.parquet"
            )
        names += [name if "://" in name else posixpath.join(folder, name) for name in part.images.names]
    column = pa.array(names, pa.large_string())
    return replace(
        rows,
        images=Files.of(path, column),
        keys=column,
        findings=[*tree.findings(used), *_unlisted(path, tree, {posixpath.normpath(name) for name in names})],
    )


def _joined(columns: Sequence[pa.Array]) -> pa.Array:
    if len({column.type for column in columns}) > 1:
        return strings_or_lists([value for column in columns for value in column.to_pylist()])
    return pa.concat_arrays(list(columns))


def _unlisted(path: Path, tree: Walk, listed: Collection[str]) -> list[Finding]:
    unlisted = [row for row, image in enumerate(tree.images) if image not in listed]
    found = finding_about(
        unlisted, len(tree.images),
        name="unlisted_images", what=f"{path}: images that are ignored because no metadata table lists them",
        describe=lambda row: tree.images[row], severity="warning",
        advice="if these images belong to the data, add them to the table",
    )  # fmt: skip
    return [] if found is None else [found]


def _without_captions(path: Path, tree: Walk, wanted: Wanted) -> Rows:
    """Read class folders, or images without captions and labels."""
    alone = [image for image in tree.images if "/" not in image]
    inside = [image for image in tree.images if "/" in image]
    needs_classes = {"caption", "label"} & set(wanted.needed)
    if alone and inside and not needs_classes:
        return _of_files(path, tree, {})
    if alone and inside:
        raise DataError(
            f"{path}: has {counted(len(alone), 'image')} outside of class folders, such as {alone[0]}, and "
            f"{counted(len(inside), 'image')} in class folders, such as {inside[0]}; move or remove the "
            "images of one of the two kinds"
        )
    if alone and "caption" in wanted.needed:
        raise DataError(
            f"{path}: has images without captions; add a .txt file for each image, or a metadata.csv with the "
            "columns file_name and text, or use a table or class folders"
        )
    if alone and "label" in wanted.needed:
        raise DataError(f"{path}: contains no class folders with images; create files such as {path / 'cat' / '1.jpg'}")
    if not tree.images:
        left_out = "".join(f" ({finding.message})" for finding in tree.findings([]))
        if not needs_classes:
            raise DataError(f"{path}: contains no images{left_out}; give a folder with images")
        raise DataError(
            f"{path}: contains no images and no class folders{left_out}; create files such as {path / 'cat' / '1.jpg'}"
        )
    if alone:
        return _of_files(path, tree, {})
    labels = [image.partition("/")[0] for image in inside]
    classes = _class_list(path, sorted({label.strip() for label in (*labels, *tree.empty)}))
    rows = _of_files(path, tree, {"label": pa.array(labels, pa.large_string())}, [CLASS_NAMES, TEMPLATES])
    deeper = finding_about(
        [row for row, image in enumerate(inside) if image.count("/") > 1], len(inside),
        name="nested_folders", what=f"{path}: images in folders below the class folders",
        describe=lambda row: f"{inside[row]} has the class {labels[row]}", severity="warning",
        advice="the class of an image is the top folder of its path; if it should be the lowest folder, move these "
        "folders up",
    )  # fmt: skip
    uses_classes = {"caption", "label", "templates"} & {*wanted.needed, *wanted.options}
    return replace(rows, classes=classes, findings=[*rows.findings, *([deeper] if deeper and uses_classes else [])])


def _class_list(path: Path, labels: Sequence[str]) -> ClassList:
    file, templates = path / CLASS_NAMES, path / TEMPLATES
    prompts = read_lines(templates) if templates.is_file() else None
    if not file.is_file():
        return ClassList(labels, None, prompts)
    names = paired_names(str(file), labels, read_lines(file))
    return ClassList(list(names), list(names.values()), prompts)


def _with_texts(path: Path, tree: Walk, has_text: list[bool]) -> Rows:
    captions, used = [], []
    for image, present in zip(tree.images, has_text, strict=True):
        name = f"{posixpath.splitext(image)[0]}.txt"
        text = path / name
        try:
            content = read_text(text) if present else ""
        except UnicodeDecodeError as error:
            raise DataError(f"{text}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise DataError(f"{text}: cannot be read ({error.strerror}); check the file and its permissions") from None
        used += [name] * present
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        captions.append(lines if len(lines) > 1 else (lines or [""])[0])
    return _of_files(path, tree, {"caption": strings_or_lists(captions)}, used)


def _of_files(path: Path, tree: Walk, columns: dict[str, pa.Array], used: Collection[str] = ()) -> Rows:
    names = pa.array(tree.images, pa.large_string())
    return Rows(str(path), columns, Files.of(path, names), names, row="image", findings=tree.findings(used))
