"""Reading of the data of a suite's datasets."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipkit.data import LabeledImages, NearMisses, Pairs, read_classes, read_labeled, read_templates
from clipkit.data.associations import Associations
from clipkit.data.content_hash import content_hash
from clipkit.data.sources.columns import split_options
from clipkit.errors import DataError, UnreachedError
from clipkit.evaluation.suites.corruptions import Corrupted
from clipkit.evaluation.suites.entries import DataSet
from clipkit.evaluation.tasks.task import TaskData, task_of
from clipkit.images import Stored, size_of


def fingerprint_of(opened: TaskData) -> str:
    """Return a text that identifies the data. Data that can give different results have different texts."""
    contents_of = {NearMisses: _near_misses, Associations: _associations}.get(type(opened.data))
    data = opened.data.fingerprint if contents_of is None else contents_of(opened.data)
    train = opened.train.fingerprint if opened.train is not None else ""
    templates = opened.templates
    if templates is None and isinstance(opened.data, LabeledImages):
        templates = opened.data.templates
    contents = [_content_of(part.images) for part in (opened.data, opened.train) if part is not None]
    return json.dumps([data, train, opened.classes, templates, contents], ensure_ascii=False)


def _content_of(images: Sequence[Path | Stored]) -> str:
    """Return a hash of the content of the images before corruption."""
    return content_hash([image.source if isinstance(image, Corrupted) else image for image in images])


def _near_misses(data: Any) -> list[Any]:
    places = [data.image_positions.tolist(), data.caption_positions.tolist()]
    return [_sizes(data.images), data.captions, *places, data.categories]


def _associations(data: Any) -> list[Any]:
    return [_sizes(data.images), data.cues, data.candidates, data.right]


def _sizes(images: Sequence[Path | Stored]) -> list[Any]:
    return [[image.name, size_of(image)] for image in images]


def open_data(entry: DataSet) -> TaskData:
    """Read the data of a suite's dataset.

    Raises:
        UnreachedError: the data is missing or cannot be downloaded.
        DataError: the data does not match the dataset's definition, e.g. in the number of images.
    """
    opened = _read(entry)
    if entry.classes is not None:
        classes = read_classes(entry.classes) if isinstance(entry.classes, str) else entry.classes
        opened = replace(opened, classes=classes)
    if entry.templates is not None:
        templates = read_templates(entry.templates) if isinstance(entry.templates, str) else entry.templates
        opened = replace(opened, templates=templates)
    if entry.ignored_groups and isinstance(opened.data, LabeledImages) and opened.data.groups is not None:
        groups = ["" if group in entry.ignored_groups else group for group in opened.data.groups]
        opened = replace(opened, data=replace(opened.data, groups=groups))
    _check_counts(entry, opened)
    if entry.corruption is not None:
        if isinstance(opened.data, NearMisses | Associations):
            raise DataError(
                f"{entry.name}: the task {entry.task} does not support the key 'corruption'; remove this key"
            )
        corrupted: list[Path | Stored] = [Corrupted(image, entry.corruption) for image in opened.data.images]
        opened = replace(opened, data=replace(opened.data, images=corrupted))
    return opened


def _read(entry: DataSet) -> TaskData:
    source, train = entry.source, entry.train
    if source.startswith("wds:"):
        name, mark, options = source.partition("?")
        source, train = f"{name}:{entry.split}{mark}{options}", None if train is None else f"{name}:{train}"
    for given in (source, train):
        if given is not None and not _is_present(given):
            raise UnreachedError(f"{given}: file not found; give a path relative to the working directory")
    data = task_of(entry.task).read(source)
    return TaskData(data, train=read_labeled(train) if train is not None else None)


def _is_present(source: str) -> bool:
    """Return True if the files of a source exist, or if the source is downloaded or generated on reading."""
    name, options = split_options(source)
    if name.startswith(("hf:", "wds:", "twemoji:")):
        return True
    paths = [name, *([options["images"]] if "images" in options else [])]
    # For a pattern of shards, check its folder.
    folders = [Path(path).parent if set(path) & set("*?[{") else Path(path) for path in paths]
    return all(folder.expanduser().exists() for folder in folders)


def _check_counts(entry: DataSet, opened: TaskData) -> None:
    data: Any = opened.data
    counts = {"images": len(data.images)}
    if isinstance(data, Pairs):
        counts["captions"] = len(data.captions)
    if isinstance(data, LabeledImages):
        counts["class_count"] = len(opened.classes) if opened.classes is not None else len(data.classes)
    for name, count in counts.items():
        expected = getattr(entry, name)
        if expected is not None and expected != count:
            raise DataError(
                f"{entry.source}: {name} is {count:,}, but the definition of {entry.name} expects {expected:,}; "
                f"download the data again, or correct {name} in the suite's file"
            )
