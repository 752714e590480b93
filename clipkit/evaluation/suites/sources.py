"""From an entry of a suite to data: files, Hub data sets in CLIP_benchmark's layout, emoji, with corruptions."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data import (
    Classes,
    LabelledPictures,
    NearMisses,
    Pairs,
    Templates,
    read_classes,
    read_labelled,
    read_near_misses,
    read_pairs,
    read_templates,
)
from clipkit.data.emoji import build_emoji_data, write_names
from clipkit.data.prompts import read_lines
from clipkit.errors import DataError, one_line
from clipkit.evaluation.suites.corruptions import Corrupted
from clipkit.evaluation.suites.entries import DataSet
from clipkit.files import cache_folder
from clipkit.pictures import Stored

LANGUAGES = ("de", "en", "es", "fr", "it", "pt")


@dataclass(frozen=True)
class Opened:
    """The data of an entry."""

    data: Pairs | LabelledPictures | NearMisses
    classes: Classes | None = None
    templates: Templates | None = None
    train: LabelledPictures | None = None

    @property
    def fingerprint(self) -> str:
        """Of what would change a result."""
        names = self.data.fingerprint if not isinstance(self.data, NearMisses) else "\0".join(self.data.captions)
        train = self.train.fingerprint if self.train is not None else ""
        return json.dumps([names, train, self.classes, self.templates], ensure_ascii=False)


def open_data(entry: DataSet) -> Opened:
    """The data of an entry, read.

    Raises:
        DataError: it cannot be reached, or is not what the entry says.
    """
    if entry.source.startswith("wds:"):
        opened = _of_hub(entry)
    elif entry.source.startswith("twemoji:"):
        opened = _of_emoji(entry)
    else:
        opened = Opened(_read(entry.task, entry.source))
    if entry.classes is not None:
        classes = read_classes(entry.classes) if isinstance(entry.classes, str) else entry.classes
        opened = replace(opened, classes=classes)
    if entry.templates is not None:
        templates = read_templates(entry.templates) if isinstance(entry.templates, str) else entry.templates
        opened = replace(opened, templates=templates)
    if entry.train is not None:
        opened = replace(opened, train=read_labelled(entry.train))
    _check_counts(entry, opened)
    if entry.corruption is not None:
        if isinstance(opened.data, NearMisses):
            raise DataError(f"{entry.name}: corruptions are of zeroshot, retrieval and probe; leave it out")
        worse: list[Path | Stored] = [Corrupted(own, entry.corruption) for own in opened.data.pictures]
        opened = replace(opened, data=replace(opened.data, pictures=worse))
    return opened


def _read(task: str, source: str) -> Pairs | LabelledPictures | NearMisses:
    match task:
        case "retrieval":
            return read_pairs(source)
        case "compositional":
            return read_near_misses(source)
    return read_labelled(source)


def _check_counts(entry: DataSet, opened: Opened) -> None:
    data: Any = opened.data
    found = {"pictures": len(data.pictures)}
    if isinstance(data, Pairs):
        found["captions"] = len(data.captions)
    if isinstance(data, LabelledPictures):
        found["class_count"] = len(opened.classes) if opened.classes is not None else len(data.classes)
    for name, count in found.items():
        wanted = getattr(entry, name)
        if wanted is not None and wanted != count:
            raise DataError(
                f"{entry.source}: has {count:,} {name.replace('_', ' ')}, and {entry.name} should have {wanted:,}; "
                "fetch it again, or correct the suite's file"
            )


def _of_hub(entry: DataSet) -> Opened:
    """A data set of the Hub in the layout that CLIP_benchmark's are in: tars below the split, texts beside it."""
    from huggingface_hub import snapshot_download

    repository, _, revision = entry.source.removeprefix("wds:").partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[f"{entry.split}/*", "*.txt"],
            )
        )
    except Exception as error:  # the client's errors are many, and all mean that it is not there
        raise DataError(f"{entry.source}: cannot be fetched from the Hub ({one_line(error)})") from None
    return open_wds(folder, entry.split)


def open_wds(folder: Path, split: str) -> Opened:
    """Shards in CLIP_benchmark's layout: `SPLIT/0.tar …`, class names and prompts beside them.

    Raises:
        DataError: something is missing.
    """
    shards = sorted((folder / split).glob("*.tar"), key=lambda own: (len(own.stem), own.stem))
    if not shards:
        raise DataError(f"{folder}: has no shards {split}/0.tar; give another split")
    pattern = str(folder / split / "*.tar")
    kind = folder / "dataset_type.txt"
    if kind.is_file() and kind.read_text(encoding="utf-8").strip().lower() == "retrieval":
        return Opened(_split_lines(read_pairs(pattern)))
    labelled = read_labelled(pattern)
    if (folder / "classnames.txt").is_file():
        labelled = _by_number(labelled, read_lines(folder / "classnames.txt"), pattern)
    file = folder / "zeroshot_classification_templates.txt"
    return Opened(labelled, templates=read_lines(file) if file.is_file() else None)


def _by_number(labelled: LabelledPictures, names: list[str], source: str) -> LabelledPictures:
    """Classes in the order of their names' file, of which a label is the place; also those without a picture."""
    try:
        places = np.array([int(own) for own in labelled.classes], dtype=np.int64)
    except ValueError:
        raise DataError(
            f"{source}: has the label {labelled.classes[0]!r}, which is no place in classnames.txt"
        ) from None
    if len(places) and places.max() >= len(names):
        raise DataError(f"{source}: has the label {places.max()}, and classnames.txt {len(names)} names")
    if labelled.several:
        labels = np.zeros((len(labelled.pictures), len(names)), dtype=bool)
        labels[:, places] = labelled.labels
    else:
        labels = places[labelled.labels]
    return replace(labelled, labels=labels, classes=[str(place) for place in range(len(names))], class_names=names)


def _split_lines(pairs: Pairs) -> Pairs:
    """A caption a line."""
    captions, images = [], []
    for image, text in zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True):
        for line in text.splitlines():
            captions.append(line)
            images.append(image)
    return replace(pairs, captions=captions, image_of_caption=np.array(images, dtype=np.int64), parts=())


def _of_emoji(entry: DataSet) -> Opened:
    """Twemoji of families that `clipkit demo` and the emoji recipes hold out: groups, or names in a language."""
    what = entry.source.removeprefix("twemoji:")
    folder = cache_folder() / "twemoji"
    data = build_emoji_data(folder)
    if what == "groups":
        prompts = json.loads(data.group_prompts.read_text(encoding="utf-8"))
        return Opened(read_labelled(str(data.held_out_labels)), templates=prompts)
    if what not in LANGUAGES:
        raise DataError(
            f"{entry.source}: is none of twemoji's; take twemoji:groups, or names in {', '.join(LANGUAGES)}"
        )
    return Opened(read_pairs(str(write_names(data, what))))
