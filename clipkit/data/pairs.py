"""Images with their captions, the one thing that every source becomes."""

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

from clipkit.data.missing import check_there
from clipkit.data.prompts import prompts_of, read_templates
from clipkit.data.sequences import Chosen, Files, Strings, first_places
from clipkit.data.sources.columns import Rows, split_options
from clipkit.data.sources.read import read_rows
from clipkit.errors import DataError
from clipkit.images import Stored, size_of

_SIZES = 10_000


@dataclass(frozen=True)
class Part:
    """What came from one of several sources."""

    images: NDArray[np.int64]
    captions: NDArray[np.int64]
    """Positions of its images and of its captions among all."""
    weight: float
    """How often they come in an epoch."""


@dataclass(frozen=True)
class Pairs:
    """N images and M captions; an image's position is its identity."""

    name: str
    images: Sequence[Path | Stored]
    captions: Sequence[str]
    image_of_caption: NDArray[np.int64]
    """(M,) position of each caption's image."""
    negatives: Sequence[str] | None = None
    """(M,) for each caption one that is wrong, where the source has them."""
    paraphrases: Sequence[str] | None = None
    """(M,) for each caption another wording, where the source has them."""
    has_images: bool = True
    """Whether there are images, or captions alone, of which each then stands by itself."""
    has_captions: bool = True
    """Whether there are captions, or images alone, of which each then has the empty one."""
    found: dict[str, str] = field(default_factory=dict)
    """The column that each role was found in, where the source has columns."""
    parts: Sequence["Part"] = ()
    """Where pairs come from several sources: what is whose. None: all of them come once an epoch."""

    @cached_property
    def captions_of_image(self) -> list[NDArray[np.int64]]:
        """For each image the positions of its captions, in the source's order."""
        order = np.argsort(self.image_of_caption, kind="stable")
        starts = np.searchsorted(self.image_of_caption[order], np.arange(1, len(self.images)))
        return np.split(order, starts)

    @cached_property
    def caption_ids(self) -> NDArray[np.int64]:
        """(M,) which caption each one is: equal strings have equal ids, the position of their first."""
        which, first = first_places(Strings.of(self.captions).column)
        return first[which]

    @cached_property
    def sha256(self) -> str:
        """Hash of the image names and captions in order; not of the pixels."""
        digest = hashlib.sha256()
        for names in (_names(self.images), self.captions):
            digest.update("\0".join(names).encode() + b"\0\0")
        digest.update(self.image_of_caption.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names and captions, as above, and of the image files' sizes: of 10,000 of them, evenly spaced."""
        count = len(self.images) if self.has_images else 0
        places = np.linspace(0, count - 1, min(count, _SIZES)).round().astype(int).tolist()
        sizes = np.array([size_of(self.images[place]) for place in places], dtype="<i8")
        return hashlib.sha256(self.sha256.encode() + sizes.tobytes()).hexdigest()

    def image_name(self, image: int) -> str:
        """Where an image lies, for a person."""
        return str(self.images[image])

    def take(self, positions: NDArray[np.int64]) -> "Pairs":
        """These images, in this order, with all their captions."""
        rows = np.concatenate([self.captions_of_image[image] for image in positions.tolist()])
        counts = [len(self.captions_of_image[image]) for image in positions.tolist()]

        def of_rows(texts: Sequence[str] | None) -> Sequence[str] | None:
            return None if texts is None else Strings.of(texts).take(rows)

        return replace(
            self,
            images=_chosen(self.images, positions),
            captions=Strings.of(self.captions).take(rows),
            image_of_caption=np.repeat(np.arange(len(positions), dtype=np.int64), counts),
            negatives=of_rows(self.negatives),
            paraphrases=of_rows(self.paraphrases),
            parts=[_part(part, positions, len(self.images), rows, len(self.captions)) for part in self.parts],
        )


def checked_negatives(pairs: Pairs) -> Sequence[str]:
    """The wrong captions, where a loss wants them.

    Raises:
        DataError: the source has none, a row lacks its own, or one is a right caption of its image.
    """
    if pairs.negatives is None:
        raise DataError(
            f"{pairs.name}: the loss needs a column negative_caption, a wrong caption beside each; add it, or take "
            "loss.name: infonce"
        )
    right = set(zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True))
    for row, (image, wrong) in enumerate(zip(pairs.image_of_caption.tolist(), pairs.negatives, strict=True), 1):
        if not wrong:
            raise DataError(f"{pairs.name}: row {row} has no negative_caption; fill it in or drop the row")
        if (image, wrong) in right:
            raise DataError(
                f"{pairs.name}: row {row}'s negative_caption {wrong[:60]!r} is a caption of its image; mend it"
            )
    return pairs.negatives


def read_pairs(source: str, *, images: bool = True, captions: bool = True, broken: Collection[str] = ()) -> Pairs:
    """Pairs from any source.

    Rows that name one image are one image. Class folders, and a table with labels and without captions, give
    images whose caption is their class, or with `?templates=` the class in each of the templates.

    Args:
        source: a .csv, .tsv, .jsonl or .parquet file; a folder of images with metadata.csv or .jsonl or a .txt beside
            each, or of class folders; hf:NAME[:SPLIT]; a folder saved by `datasets`; shards-{000..099}.tar. Columns are
            found by name or given as `photos.csv?image=file&caption=title`; columns negative_caption and paraphrase are
            read where they are. ImageLike paths are relative to the file.
        images: whether there have to be images.
        captions: whether there have to be captions.
        broken: what may be broken: "images", which then may be missing, and "captions", which then may be empty.

    Raises:
        DataError: the source, a column, a caption or an image is missing, or the format is not known.

    Example:
        >>> read_pairs("captions.csv").captions[0]    # doctest: +SKIP
        'A black dog is running after a white dog in the snow .'
    """
    _, options = split_options(source)
    needed = ["image"] * images + ["caption"] * (captions and "templates" not in options)
    optional = ["image", "caption", "negative_caption", "paraphrase", "label"]
    rows = read_rows(source, needed, optional)
    if "label" in rows.columns and ("templates" in options or ("caption" not in rows.columns and captions)):
        rows = _with_prompts(rows, options.get("templates"))
    pairs = _of_rows(rows, images, captions, "captions" in broken)
    del rows
    pa.default_memory_pool().release_unused()  # of a million rows, a quarter of a gigabyte
    if pairs.has_images and "images" not in broken:
        check_there(pairs.name, pairs.images)
    return pairs


def _of_rows(rows: Rows, images: bool, captions: bool, may_be_empty: bool) -> Pairs:
    texts, row_of_text = _texts(rows)
    if "caption" in texts and not may_be_empty:
        empty = pc.index(texts["caption"].column, "").as_py()
        if empty >= 0 and captions:
            raise DataError(
                f"{rows.name}: {rows.row} {row_of_text[empty] + 1} has no caption; fill it in or drop the {rows.row} "
                "(clipkit data check --fix does)"
            )
        if empty >= 0:
            del texts["caption"]
    if rows.images is None and "caption" not in texts:
        raise DataError(f"{rows.name}: has neither images nor captions in its columns; name one as ?image=COLUMN")
    if rows.images is None:
        count = len(texts["caption"])
        numbers = pa.array([f"{rows.row} {row}" for row in range(1, count + 1)], pa.large_string())
        files: Sequence[Path | Stored] = Files.of(Path(), numbers)
        image_of_text = np.arange(count, dtype=np.int64)
    else:
        which, first = first_places(rows.keys)
        files, image_of_text = _chosen(rows.images, first), which[row_of_text]
    if "caption" not in texts:
        every = np.arange(len(files), dtype=np.int64)
        return Pairs(rows.name, files, [""] * len(files), every, has_captions=False, found=rows.found)
    return Pairs(
        rows.name,
        files,
        texts["caption"],
        image_of_text,
        texts.get("negative_caption"),
        texts.get("paraphrase"),
        has_images=rows.images is not None and images,
        found=rows.found,
    )


def _texts(rows: Rows) -> tuple[dict[str, Strings], NDArray[np.int64]]:
    """Columns of texts, a row a caption, and for each the row of the source that it comes from."""
    columns = {role: column for role, column in rows.columns.items() if role != "label"}
    several = {role: column for role, column in columns.items() if pa.types.is_large_list(column.type)}
    count = len(next(iter(columns.values()))) if columns else len(rows.images or [])
    row_of_text = np.arange(count, dtype=np.int64)
    if several:
        # An empty list is a caption that is missing, not a row that is.
        filled = {role: _at_least_one(column) for role, column in several.items()}
        lengths = {role: pc.list_value_length(column).to_numpy() for role, column in filled.items()}
        first = next(iter(lengths))
        for role in columns:
            if role not in lengths or not np.array_equal(lengths[role], lengths[first]):
                own = lengths.get(role, np.ones(count))
                row = int(np.flatnonzero(own != lengths[first])[0]) + 1 if (own != lengths[first]).any() else 0
                if row:
                    raise DataError(f"{rows.name}: {rows.row} {row} has not as many {role}s as {first}s; give one each")
        row_of_text = np.repeat(row_of_text, lengths[first].astype(np.int64))
        columns |= {role: pc.list_flatten(column) for role, column in filled.items()}
    trimmed = {role: Strings(pc.utf8_trim_whitespace(pc.fill_null(own, ""))) for role, own in columns.items()}
    return trimmed, row_of_text


def _at_least_one(column: Any) -> Any:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    if pc.min(lengths).as_py() > 0:
        return column
    return pa.array([own or [""] for own in column.to_pylist()], column.type)


def _with_prompts(rows: Rows, templates: str | None) -> Rows:
    """Captions that are the class, or the class in each template."""
    labels = rows.columns["label"]
    if pa.types.is_large_list(labels.type):
        labels = pa.array(
            [", ".join(label or "" for label in own or []) for own in labels.to_pylist()], pa.large_string()
        )
    if templates is None:
        return replace(rows, columns={"caption": labels})
    prompts = read_templates(templates)
    made = {label: prompts_of(label, [label], prompts) for label in labels.unique().to_pylist()}
    several = pa.array([made[label] for label in labels.to_pylist()], pa.large_list(pa.large_string()))
    return replace(rows, columns={"caption": several})


def _chosen(images: Sequence[Path | Stored], places: NDArray[np.int64]) -> Sequence[Path | Stored]:
    if len(places) == len(images) and (places == np.arange(len(places))).all():
        return images
    if isinstance(images, Files):
        return Files(images.folder, images.names.take(places))
    return Chosen(images, places)


def _part(part: Part, images: NDArray[np.int64], image_count: int, rows: NDArray[np.int64], row_count: int) -> Part:
    """What of a part is left, at its new places."""
    return Part(_places(part.images, images, image_count), _places(part.captions, rows, row_count), part.weight)


def _places(own: NDArray[np.int64], kept: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    place = np.full(count, -1)
    place[kept] = np.arange(len(kept))
    return place[own][place[own] >= 0]


def _names(images: Sequence[Path | Stored]) -> list[str]:
    """Each one's own name."""
    if isinstance(images, Files):
        return [name.rpartition("/")[2] for name in images.names]
    return [image.name for image in images]
