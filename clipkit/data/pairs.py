"""Images with captions: the data structure to which all training data is converted."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.labeled_rows import labeled_rows
from clipkit.data.missing import check_present
from clipkit.data.prompts import code_findings, prompts_of, read_templates
from clipkit.data.sequences import Files, Strings, chosen, evenly_spaced, first_positions
from clipkit.data.sources.columns import LONGEST_TEXT, ClassList, Rows, split_options
from clipkit.data.sources.read import read_rows
from clipkit.errors import DataError
from clipkit.findings import Finding
from clipkit.images import Held, Stored, size_of

UNIDENTIFIED = "unidentified"
"""Fingerprint of data that another process cannot identify, such as images in a Python object."""
_MOST_SIZES = 10_000  # largest number of image files whose sizes are part of the fingerprint


@dataclass(frozen=True)
class Part:
    """Positions of the images and captions of one source in joined data."""

    images: NDArray[np.int64]
    captions: NDArray[np.int64]
    weight: float
    """Number of times that each image occurs per epoch; may be a fraction."""


@dataclass(frozen=True)
class Pairs:
    """N images and M captions. An image is identified by its position in `images`."""

    name: str
    images: Sequence[Path | Stored]
    captions: Sequence[str]
    image_of_caption: NDArray[np.int64]
    """(M,) position of the image of each caption."""
    negatives: Sequence[str] | None = None
    """(M,) hard negative of each caption, if the source has them."""
    paraphrases: Sequence[str] | None = None
    """(M,) paraphrase of each caption, if the source has them."""
    classes: Sequence[str] | None = None
    """(M,) class of each caption that was made from a label; for other captions, the caption. None: no labels."""
    has_images: bool = True
    """False for captions without images: each caption is then a separate sample."""
    has_captions: bool = True
    """False for images without captions: each image then has one empty caption."""
    found: dict[str, str] = field(default_factory=dict)
    """Column name for each role, if the source has columns."""
    parts: Sequence["Part"] = ()
    """Images and captions of each joined source; empty: a single source, whose images occur once per epoch."""
    findings: Sequence[Finding] = ()
    """Findings of the reader, e.g. about files that were left out or a column that was chosen."""
    content: str = ""
    """Hash of the content of all images; empty if it was not requested."""

    @property
    def texts(self) -> dict[str, Sequence[str]]:
        """Text columns by role: caption and, if present, negative_caption and paraphrase."""
        captions = self.captions if self.has_captions else None
        columns = {"caption": captions, "negative_caption": self.negatives, "paraphrase": self.paraphrases}
        return {role: column for role, column in columns.items() if column is not None}

    @cached_property
    def captions_of_image(self) -> list[NDArray[np.int64]]:
        """For each image, the positions of its captions, in ascending order."""
        order = np.argsort(self.image_of_caption, kind="stable")
        starts = np.searchsorted(self.image_of_caption[order], np.arange(1, len(self.images)))
        return np.split(order, starts)

    @cached_property
    def caption_ids(self) -> NDArray[np.int64]:
        """(M,) ID of each caption: the position of the first equal caption."""
        distinct, first = first_positions(Strings.of(self.captions).column)
        return first[distinct]

    @cached_property
    def positive_ids(self) -> NDArray[np.int64]:
        """(M,) ID of each caption. Two captions with the same ID are positives for each other's images.

        Equal captions share an ID. If captions were made from class labels, all prompts of a class share an ID.
        """
        if self.classes is None:
            return self.caption_ids
        distinct, first = first_positions(Strings.of(self.classes).column)
        return first[distinct]

    @cached_property
    def sha256(self) -> str:
        """Hash of the image names, the captions and their order, but not of the pixels."""
        digest = hashlib.sha256()
        for names in (_file_names(self.images), self.captions):
            digest.update("\0".join(names).encode() + b"\0\0")
        digest.update(self.image_of_caption.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the image names, the captions, and the file sizes of up to 10,000 evenly spaced images.

        If `content` is set, it replaces the file sizes. Images from a Python object without `content` give the constant
        `UNIDENTIFIED`.
        """
        if self.content:
            return hashlib.sha256(f"{self.sha256} {self.content}".encode()).hexdigest()
        positions = evenly_spaced(len(self.images) if self.has_images else 0, _MOST_SIZES)
        if any(isinstance(self.images[position], Held) for position in positions):
            return UNIDENTIFIED
        sizes = np.array([size_of(self.images[position]) for position in positions], dtype="<i8")
        return hashlib.sha256(self.sha256.encode() + sizes.tobytes()).hexdigest()

    def take(self, positions: NDArray[np.int64]) -> "Pairs":
        """Select images with all their captions. The images are in the order of `positions`."""
        return self._chosen(positions, np.concatenate([self.captions_of_image[image] for image in positions.tolist()]))

    def take_captions(self, rows: NDArray[np.int64]) -> "Pairs":
        """Select captions and their images. The captions are in the order of `rows`; the images keep their order."""
        return self._chosen(np.unique(self.image_of_caption[rows]), rows)

    def _chosen(self, positions: NDArray[np.int64], rows: NDArray[np.int64]) -> "Pairs":
        def of_rows(texts: Sequence[str] | None) -> Sequence[str] | None:
            return None if texts is None else Strings.of(texts).take(rows)

        return replace(
            self,
            images=chosen(self.images, positions),
            captions=Strings.of(self.captions).take(rows),
            image_of_caption=_new_positions(self.image_of_caption[rows], positions, len(self.images)),
            negatives=of_rows(self.negatives),
            paraphrases=of_rows(self.paraphrases),
            classes=of_rows(self.classes),
            parts=[
                Part(
                    _new_positions(part.images, positions, len(self.images)),
                    _new_positions(part.captions, rows, len(self.captions)),
                    part.weight,
                )
                for part in self.parts
            ],
        )


def checked_negatives(pairs: Pairs) -> Sequence[str]:
    """Return the hard negative captions, or raise an error if they are unsuitable for training.

    Raises:
        DataError: a hard negative is missing, or equals a correct caption of its image.
    """
    if pairs.negatives is None:
        raise DataError(
            f"{pairs.name}: has no column negative_caption, but the loss needs a hard negative caption for each row; "
            "add the column, or use loss.name: infonce"
        )
    right = set(zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True))
    for row, (image, wrong) in enumerate(zip(pairs.image_of_caption.tolist(), pairs.negatives, strict=True), 1):
        if not wrong:
            raise DataError(f"{pairs.name}: row {row} has no negative_caption; add the caption or drop the row")
        if (image, wrong) in right:
            raise DataError(
                f"{pairs.name}: row {row}'s negative_caption {wrong[:60]!r} is also a correct caption of its "
                "image; change the negative_caption"
            )
    return pairs.negatives


def read_pairs(source: object, *, images: bool = True, captions: bool = True, broken: Collection[str] = ()) -> Pairs:
    """Read images with captions from any source.

    Rows with the same image path become one image with several captions. If a source has labels but no captions, e.g.
    class folders, the class of an image becomes its caption. With `?templates=`, each template gives one caption.

    Args:
        source: path or name of a source, such as photos.csv, a folder, hf:NAME or shards-{000..099}.tar (all kinds:
            `clipkit.data.sources.read.SOURCES`). Columns are found by name, or given as
            `photos.csv?image=file&caption=title`. The optional columns are negative_caption and paraphrase. Image paths
            are relative to the file. The source can also be a Python object: a list of (image, caption) pairs or of
            dicts, a dict of columns, a DataFrame, or a dataset of the library `datasets`.
        images: True if the source must have images.
        captions: True if the source must have captions.
        broken: problems that are allowed. With "images", image files may be missing; with "captions", captions may be
            empty.

    Raises:
        DataError: the source, a column, a caption or an image is missing, or the format is unsupported.

    Example:
        >>> read_pairs("captions.csv").captions[0]    # doctest: +SKIP
        'A black dog is running after a white dog in the snow .'
    """
    options = split_options(str(source))[1] if isinstance(source, str | Path) else {}
    needed = ["image"] * images + ["caption"] * (captions and "templates" not in options)
    optional = ["image", "caption", "negative_caption", "paraphrase", "label"]
    rows = read_rows(source, needed, optional)
    if "label" in rows.columns and ("templates" in options or ("caption" not in rows.columns and captions)):
        rows = _with_prompts(labeled_rows(rows, options.get("classes")), options.get("templates"))
    elif captions and options.keys() & {"templates", "classes"}:
        option = "templates" if "templates" in options else "classes"
        reason = "uses its captions, not its labels" if "caption" in rows.columns else "has no labels"
        raise DataError(f"{source}: {reason}, so the option {option} has no effect; remove the option")
    pairs = _of_rows(rows, images, captions, "captions" in broken)
    del rows
    pa.default_memory_pool().release_unused()  # free a quarter of a gigabyte per million rows
    if pairs.has_images and "images" not in broken:
        check_present(pairs.name, pairs.images)
    return pairs


def _of_rows(rows: Rows, images: bool, captions: bool, may_be_empty: bool) -> Pairs:
    texts, row_of_text = _texts(rows)
    for role, column in texts.items():
        length = pc.utf8_length(column.column)
        if len(column) and pc.max(length).as_py() > LONGEST_TEXT:
            row = row_of_text[pc.index(length, pc.max(length)).as_py()] + 1
            raise DataError(
                f"{rows.name}: {rows.row} {row} has a {role} of {pc.max(length).as_py():,} characters, more "
                f"than the limit of {LONGEST_TEXT:,}; shorten this text or drop the {rows.row}"
            )
    if "caption" in texts and not may_be_empty:
        empty = pc.index(texts["caption"].column, "").as_py()
        if empty >= 0 and captions:
            raise DataError(
                f"{rows.name}: {rows.row} {row_of_text[empty] + 1} has no caption; add the caption or drop the "
                f"{rows.row} (clipkit data check --fix drops rows without captions)"
            )
        if empty >= 0:
            del texts["caption"]
    if rows.images is None and "caption" not in texts:
        raise DataError(
            f"{rows.name}: has neither images nor captions; specify their columns with ?image=COLUMN&caption=COLUMN"
        )
    if rows.images is None:
        count = len(texts["caption"])
        numbers = pa.array([f"{rows.row} {row}" for row in range(1, count + 1)], pa.large_string())
        files: Sequence[Path | Stored] = Files.of(Path(), numbers)
        image_of_text = np.arange(count, dtype=np.int64)
    else:
        image_of_row, first = first_positions(rows.keys)
        files, image_of_text = chosen(rows.images, first), image_of_row[row_of_text]
    if "caption" not in texts:
        every = np.arange(len(files), dtype=np.int64)
        return Pairs(
            rows.name,
            files,
            [""] * len(files),
            every,
            has_captions=False,
            found=rows.found,
            findings=rows.findings,
        )
    return Pairs(
        rows.name,
        files,
        texts["caption"],
        image_of_text,
        texts.get("negative_caption"),
        texts.get("paraphrase"),
        texts.get("class"),
        has_images=rows.images is not None and images,
        found=rows.found,
        findings=rows.findings,
    )


def _texts(rows: Rows) -> tuple[dict[str, Strings], NDArray[np.int64]]:
    """Return the text columns by role with one text per row, and the source row of each text.

    Lists of texts are flattened.

    Raises:
        DataError: the text columns of a row have lists of different lengths.
    """
    columns = {role: column for role, column in rows.columns.items() if role != "label"}
    several = {role: column for role, column in columns.items() if pa.types.is_large_list(column.type)}
    count = len(next(iter(columns.values()))) if columns else len(rows.images or [])
    row_of_text = np.arange(count, dtype=np.int64)
    if several:
        # An empty list is a missing caption, not a missing row.
        filled = {role: _at_least_one(column) for role, column in several.items()}
        lengths = {role: pc.list_value_length(column).to_numpy() for role, column in filled.items()}
        first = next(iter(lengths))
        for role in columns:
            length = lengths.get(role, np.ones(count))
            different = np.flatnonzero(length != lengths[first])
            if len(different):
                row = f"{rows.row} {int(different[0]) + 1}"
                raise DataError(f"{rows.name}: {row} has different numbers of {role}s and {first}s; give equal numbers")
        row_of_text = np.repeat(row_of_text, lengths[first].astype(np.int64))
        columns |= {role: pc.list_flatten(column) for role, column in filled.items()}
    trimmed = {role: Strings(pc.utf8_trim_whitespace(pc.fill_null(column, ""))) for role, column in columns.items()}
    return trimmed, row_of_text


def _at_least_one(column: Any) -> Any:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    if pc.min(lengths).as_py() > 0:
        return column
    return pa.array([texts or [""] for texts in column.to_pylist()], column.type)


def _with_prompts(rows: Rows, templates: str | None) -> Rows:
    """Add captions made from the labels: prompts if templates are given, otherwise class names."""
    labels = rows.columns["label"]
    is_named = rows.classes is not None and rows.classes.names is not None
    if pa.types.is_large_list(labels.type):
        labels = pa.array([", ".join(_names(rows, label or [])) for label in labels.to_pylist()], pa.large_string())
    elif is_named:
        labels = pa.array(_names(rows, labels.to_pylist()), pa.large_string())
    findings = [*rows.findings, *([] if is_named else code_findings(rows.name, labels.unique().to_pylist()))]
    if "label" in rows.found:
        message = f"{rows.name}: the captions are the class names of the column {rows.found['label']!r}"
        advice = "if another column has captions, give it with ?caption=COLUMN"
        findings.append(Finding("captions_from_labels", "note", message, advice))
    if templates is None:
        return replace(rows, columns={"caption": labels, "class": labels}, findings=findings)
    prompts = read_templates(templates)
    made = {label: prompts_of(label, [label], prompts) for label in labels.unique().to_pylist()}
    several = pa.large_list(pa.large_string())
    captions = pa.array([made[label] for label in labels.to_pylist()], several)
    classes = pa.array([[label] * len(made[label]) for label in labels.to_pylist()], several)
    return replace(rows, columns={"caption": captions, "class": classes}, findings=findings)


def _names(rows: Rows, labels: Sequence[str | None]) -> list[str]:
    """Return the class name of each label. A label without a name stays unchanged."""
    classes = rows.classes or ClassList()
    names = dict(zip(classes.labels or (), classes.names or (), strict=False))
    return [names.get((label or "").strip(), label or "") for label in labels]


def _new_positions(old: NDArray[np.int64], kept: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    new = np.full(count, -1)
    new[kept] = np.arange(len(kept))
    return new[old][new[old] >= 0]


def _file_names(images: Sequence[Path | Stored]) -> list[str]:
    if isinstance(images, Files):
        return [name.rpartition("/")[2] for name in images.names]
    return [image.name for image in images]
