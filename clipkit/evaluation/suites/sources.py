"""From an entry of a suite to data: files, Hub data sets in CLIP_benchmark's layout, emoji, with corruptions."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from clipkit.data import (
    Classes,
    LabelledImages,
    NearMisses,
    Pairs,
    Templates,
    read_classes,
    read_labelled,
    read_near_misses,
    read_pairs,
    read_templates,
)
from clipkit.data.prompts import read_lines
from clipkit.data.sources.columns import split_options
from clipkit.data.sources.emoji import build_emoji_data, write_names
from clipkit.data.sources.read import read_rows
from clipkit.errors import DataError, UnreachedError, one_line
from clipkit.evaluation.suites.corruptions import Corrupted
from clipkit.evaluation.suites.entries import DataSet
from clipkit.files import cache_folder
from clipkit.images import Stored, size_of

LANGUAGES = ("de", "en", "es", "fr", "it", "pt")


@dataclass(frozen=True)
class Opened:
    """The data of an entry."""

    data: Pairs | LabelledImages | NearMisses
    classes: Classes | None = None
    templates: Templates | None = None
    train: LabelledImages | None = None

    @property
    def fingerprint(self) -> str:
        """Of what would change a result."""
        names: Any = self.data.fingerprint if not isinstance(self.data, NearMisses) else _said_of(self.data)
        train = self.train.fingerprint if self.train is not None else ""
        return json.dumps([names, train, self.classes, self.templates], ensure_ascii=False)


def _said_of(data: NearMisses) -> list[Any]:
    images = [[own.name, size_of(own)] for own in data.images]
    return [images, data.captions, data.image_positions.tolist(), data.caption_positions.tolist(), data.categories]


def open_data(entry: DataSet) -> Opened:
    """The data of an entry, read.

    Raises:
        UnreachedError: it is not here.
        DataError: it is not what the entry says.
    """
    if entry.source.startswith("wds:"):
        opened = _of_hub(entry)
    elif entry.source.startswith("twemoji:"):
        opened = _of_emoji(entry)
    else:
        opened = _of_files(entry)
    if entry.classes is not None:
        classes = read_classes(entry.classes) if isinstance(entry.classes, str) else entry.classes
        opened = replace(opened, classes=classes)
    if entry.templates is not None:
        templates = read_templates(entry.templates) if isinstance(entry.templates, str) else entry.templates
        opened = replace(opened, templates=templates)
    _check_counts(entry, opened)
    if entry.corruption is not None:
        if isinstance(opened.data, NearMisses):
            raise DataError(f"{entry.name}: corruptions are of zeroshot, retrieval and probe; leave it out")
        worse: list[Path | Stored] = [Corrupted(own, entry.corruption) for own in opened.data.images]
        opened = replace(opened, data=replace(opened.data, images=worse))
    return opened


def _of_files(entry: DataSet) -> Opened:
    """Data as the other commands take it."""
    for source in (entry.source, entry.train):
        if source is not None and not _is_there(source):
            raise UnreachedError(f"{source}: is not there; paths are relative to the working directory")
    match entry.task:
        case "retrieval":
            return Opened(read_pairs(entry.source))
        case "compositional":
            return Opened(read_near_misses(entry.source))
    return Opened(read_labelled(entry.source), train=read_labelled(entry.train) if entry.train is not None else None)


def _is_there(source: str) -> bool:
    """Whether there is anything where it should lie; what `datasets` fetches finds out by itself."""
    name, options = split_options(source)
    if name.startswith("hf:"):
        return True
    places = [name, *([options["images"]] if "images" in options else [])]
    # Of a pattern of shards the folder.
    paths = [Path(own).parent if set(own) & set("*?[{") else Path(own) for own in places]
    return all(path.expanduser().exists() for path in paths)


def _check_counts(entry: DataSet, opened: Opened) -> None:
    data: Any = opened.data
    found = {"images": len(data.images)}
    if isinstance(data, Pairs):
        found["captions"] = len(data.captions)
    if isinstance(data, LabelledImages):
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
    splits = [entry.split, *([entry.train] if entry.train is not None else [])]
    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=["*.txt", *(f"{split}/*" for split in splits)],
            )
        )
    except Exception as error:  # the client's errors are many, and all mean that it is not there
        raise UnreachedError(f"{entry.source}: cannot be fetched from the Hub ({_first_sentence(error)})") from None
    opened = open_wds(folder, entry.split)
    if entry.train is None:
        return opened
    train = open_wds(folder, entry.train).data
    if not isinstance(train, LabelledImages):
        raise DataError(f"{entry.source}: has captions, and a probe learns labels; take task: retrieval")
    return replace(opened, train=train)


def _first_sentence(error: Exception) -> str:
    """The client explains itself at length."""
    return one_line(error).partition(". ")[0].removesuffix(".")


def open_wds(folder: Path, split: str) -> Opened:
    """Shards in CLIP_benchmark's layout: `SPLIT/0.tar …`, class names and prompts beside them.

    Raises:
        DataError: something is missing.
    """
    count = folder / split / "nshards.txt"
    if not count.is_file():
        raise DataError(f"{folder}: has no split {split} ({split}/nshards.txt is missing); give another one")
    shards = read_lines(count)[0]
    if not shards.isdecimal() or int(shards) == 0:
        raise DataError(f"{count}: says {shards!r}, and should say how many shards there are; fetch it again")
    pattern = f"{folder / split}/{{0..{int(shards) - 1}}}.tar"
    file = folder / "dataset_type.txt"
    kind = read_lines(file)[0].lower() if file.is_file() else "classification"
    if kind == "retrieval":
        return Opened(_split_lines(read_pairs(pattern)))
    file = folder / "classnames.txt"
    names = read_lines(file) if file.is_file() else None
    if kind == "multilabel":
        if names is None:
            raise DataError(f"{folder}: has no classnames.txt, without which several labels mean nothing")
        labelled = _of_several(pattern, names)
    else:
        labelled = read_labelled(pattern)
        labelled = _by_number(labelled, names, pattern) if names is not None else labelled
    file = folder / "zeroshot_classification_templates.txt"
    return Opened(labelled, templates=read_lines(file) if file.is_file() else None)


def _by_number(labelled: LabelledImages, names: list[str], source: str) -> LabelledImages:
    """Classes in the order of their names' file, of which a label is the place; also those without an image."""
    try:
        places = np.array([int(own) for own in labelled.classes], dtype=np.int64)
    except ValueError:
        raise DataError(
            f"{source}: has the label {labelled.classes[0]!r}, which is no place in classnames.txt"
        ) from None
    wrong = places[(places < 0) | (places >= len(names))]
    if len(wrong):
        raise DataError(f"{source}: has the label {wrong[0]}, and classnames.txt {len(names)} names")
    if labelled.several:
        raise DataError(f"{source}: has several labels an image; dataset_type.txt has to say multilabel")
    classes = [str(place) for place in range(len(names))]
    return replace(labelled, labels=places[labelled.labels], classes=classes, class_names=names)


def _of_several(pattern: str, names: list[str]) -> LabelledImages:
    """Images with any number of classes, also none."""
    rows = read_rows(pattern, ["image", "label"])
    assert rows.images is not None
    labels = np.zeros((len(rows.images), len(names)), dtype=bool)
    for row, own in enumerate(rows.columns["label"].to_pylist()):
        for label in own if isinstance(own, list) else [own]:
            if label and not (label.isdecimal() and int(label) < len(names)):
                raise DataError(f"{pattern}: has the label {label!r}, and classnames.txt {len(names)} names")
            if label:
                labels[row, int(label)] = True
    return LabelledImages(pattern, list(rows.images), labels, [str(own) for own in range(len(names))], names)


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
    if what != "groups" and what not in LANGUAGES:
        raise DataError(
            f"{entry.source}: is none of twemoji's; take twemoji:groups, or names in {', '.join(LANGUAGES)}"
        )
    task = "zeroshot" if what == "groups" else "retrieval"
    if entry.task != task:
        raise DataError(f"{entry.source}: is for {task}, and {entry.name} is of {entry.task}")
    folder = cache_folder() / "twemoji"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # another process may be building the same
        try:
            data = build_emoji_data(folder)
        except DataError as error:  # its packages are missing
            raise UnreachedError(str(error)) from None
        if what == "groups":
            prompts = json.loads(data.group_prompts.read_text(encoding="utf-8"))
            return Opened(read_labelled(str(data.held_out_labels)), templates=prompts)
        return Opened(read_pairs(str(write_names(data, what))))
