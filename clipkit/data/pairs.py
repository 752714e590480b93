"""Pictures with their captions, the one thing that every source becomes."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.labels import class_folders, pictures_in
from clipkit.data.table import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    NEGATIVE_COLUMNS,
    PARAPHRASE_COLUMNS,
    existing_pictures,
    read_table,
    split_options,
)
from clipkit.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """N pictures and M captions; a picture's position is its identity."""

    name: str
    pictures: list[Path]
    captions: list[str]
    image_of_caption: NDArray[np.int64]
    """(M,) position of each caption's picture."""
    negatives: list[str] | None = None
    """(M,) for each caption one that is wrong, where the source has them."""
    paraphrases: list[str] | None = None
    """(M,) for each caption another wording, where the source has them."""
    has_pictures: bool = True
    """Whether there are pictures, or captions alone, of which each then stands by itself."""
    has_captions: bool = True
    """Whether there are captions, or pictures alone, of which each then has the empty one."""

    @cached_property
    def captions_of_image(self) -> list[NDArray[np.int64]]:
        """For each picture the positions of its captions, in the source's order."""
        order = np.argsort(self.image_of_caption, kind="stable")
        starts = np.searchsorted(self.image_of_caption[order], np.arange(1, len(self.pictures)))
        return np.split(order, starts)

    @cached_property
    def caption_ids(self) -> NDArray[np.int64]:
        """(M,) which caption each one is: equal strings have equal ids."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(caption, row) for row, caption in enumerate(self.captions)], dtype=np.int64)

    @cached_property
    def sha256(self) -> str:
        """Hash of the picture names and captions in order; not of the pixels."""
        digest = hashlib.sha256()
        for caption, image in zip(self.captions, self.image_of_caption, strict=True):
            digest.update(f"{self.pictures[image].name}\0{caption}\0".encode())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names and captions, as above, and of the picture files' sizes."""
        files = self.pictures if self.has_pictures else []
        sizes = np.array([picture.stat().st_size for picture in files], dtype="<i8")
        return hashlib.sha256(self.sha256.encode() + sizes.tobytes()).hexdigest()


def checked_negatives(pairs: Pairs) -> list[str]:
    """The wrong captions, where a loss wants them.

    Raises:
        DataError: the source has none, a row lacks its own, or one is a right caption of its picture.
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
                f"{pairs.name}: row {row}'s negative_caption {wrong[:60]!r} is a caption of its picture; mend it"
            )
    return pairs.negatives


def read_pairs(source: str, *, pictures: bool = True, captions: bool = True) -> Pairs:
    """Pairs from a CSV or TSV file, one row a caption, or from a folder.

    Rows that name one picture are one picture. A folder of class folders gives pictures whose caption is their class; a
    folder of pictures gives pictures alone.

    Args:
        source: a path; the columns of a file are found by name or given as `photos.csv?image=file&caption=title`.
            Picture paths are relative to the file. Columns negative_caption and paraphrase are read where they are.
        pictures: whether there have to be pictures.
        captions: whether there have to be captions.

    Raises:
        DataError: the file, a column, a caption or a picture is missing, or the format is not known.

    Example:
        >>> read_pairs("captions.csv").captions[0]    # doctest: +SKIP
        'A black dog is running after a white dog in the snow .'
    """
    path, _ = split_options(source)
    if path.is_dir():
        return _of_folder(path, captions)
    if path.suffix not in (".csv", ".tsv"):
        raise DataError(f"{source}: captions are read from .csv and .tsv files and from class folders; this is neither")
    roles = {"image": (IMAGE_COLUMNS, pictures), "caption": (CAPTION_COLUMNS, captions)}
    table = read_table(
        source,
        {role: names for role, (names, needed) in roles.items() if needed},
        {role: names for role, (names, needed) in roles.items() if not needed}
        | {"negative_caption": NEGATIVE_COLUMNS, "paraphrase": PARAPHRASE_COLUMNS},
    )
    columns = {role: [cell.strip() for cell in cells] for role, cells in table.columns.items() if role != "image"}
    if "" in columns.get("caption", []):
        if captions:
            row = columns["caption"].index("") + 1
            raise DataError(f"{table.path}: row {row} has no caption; fill it in or drop the row")
        del columns["caption"]
    names = table.columns.get("image")
    if names is None and "caption" not in columns:
        raise DataError(f"{table.path}: has neither pictures nor captions in its columns; name one as ?image=COLUMN")
    if names is None:
        files = [Path(f"row {row}") for row in range(1, len(columns["caption"]) + 1)]
        image_of_caption = list(range(len(files)))
    else:
        position: dict[str, int] = {}
        image_of_caption = [position.setdefault(name, len(position)) for name in names]
        # Where pictures are not needed they only say which captions belong together.
        files = existing_pictures(table.path, list(position)) if pictures else [Path(name) for name in position]
    if "caption" not in columns:
        return Pairs(str(table.path), files, [""] * len(files), np.arange(len(files)), has_captions=False)
    return Pairs(
        str(table.path),
        files,
        columns["caption"],
        np.array(image_of_caption, dtype=np.int64),
        columns.get("negative_caption"),
        columns.get("paraphrase"),
        has_pictures=names is not None and pictures,
    )


def _of_folder(path: Path, captions: bool) -> Pairs:
    alone, inside = pictures_in(path), pictures_in(path, "*/*")
    if alone and inside:
        raise DataError(
            f"{path}: has {len(alone)} pictures of its own, as {alone[0].name}, beside {len(inside)} in class folders, "
            f"as {inside[0].relative_to(path)}; keep one of the two kinds"
        )
    if alone and captions:
        raise DataError(
            f"{path}: is a folder of pictures without captions; give a CSV or TSV file with the columns image and "
            "caption, or a folder of class folders"
        )
    if alone:
        every = np.arange(len(alone), dtype=np.int64)
        return Pairs(str(path), alone, [""] * len(alone), every, has_captions=False)
    pictures, classes = class_folders(path)
    return Pairs(str(path), pictures, classes, np.arange(len(pictures), dtype=np.int64))
