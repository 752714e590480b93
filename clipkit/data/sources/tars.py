"""Reader of local WebDataset shards (tar files). Files with the same name up to the first dot form a sample.

Each tar file is scanned once. The user's cache folder stores the positions of its files, so that samples can be read
in any order.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from braceexpand import braceexpand
from tqdm.auto import tqdm

from clipkit.data.sources.choice import choice_finding
from clipkit.data.sources.columns import Rows, Wanted, exists
from clipkit.data.sources.json_rows import strings_or_lists
from clipkit.data.sources.parts import parts_of_split
from clipkit.data.sources.samples import ENDINGS
from clipkit.data.sources.shard_index import ROLES, index_of, used_captions, used_endings
from clipkit.data.sources.walk import matching
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.images import Stored
from clipkit.opening import check_file, open_file

T = TypeVar("T")


def shards_of(pattern: str) -> list[Path]:
    """Return the paths of the shards that match a pattern: `shards-{000..099}.tar`, `shards-*.tar` or a file name.

    Raises:
        DataError: a file is missing, or the braces do not match.
    """
    if exists(pattern):
        return [_shard(Path(pattern).expanduser())]
    try:
        names = list(braceexpand(pattern))
    except ValueError:
        raise DataError(
            f"{pattern}: the braces in its name do not match; write, for example, shards-{{000..099}}.tar"
        ) from None
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        is_pattern = bool(set("*?[") & set(path.name)) and not is_file(path)
        paths += (matching(path) if is_pattern else []) or [path]
    missing = [path for path in paths if not is_file(path)]
    if missing:
        count = (
            f"{len(missing)} of its {len(paths)} shards are missing, e.g. " if len(paths) > 1 else "file not found: "
        )
        raise DataError(f"{pattern}: {count}{missing[0]}; check the path or pattern")
    return paths


def _shard(path: Path) -> Path:
    try:
        check_file(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a tar file") from None
    return path


def literal(folder: Path) -> str:
    """Escape braces and backslashes in the path of a folder, for use in a pattern for `shards_of`."""
    return re.sub(r"([{}\\])", r"\\\1", str(folder))


def read_tars(pattern: str, wanted: Wanted) -> Rows:
    """Read the rows of local shards, in the order of the shards and of their samples.

    An option such as `?caption=title` names the file ending or the JSON key of a role.

    Raises:
        DataError: a shard is missing or damaged, or no sample has a needed role.
    """
    return _read(pattern, shards_of(pattern), wanted)


def read_tar_folder(path: str, wanted: Wanted) -> Rows:
    """Read all shards of a folder or, with `?split=NAME`, the shards whose names contain NAME.

    Raises:
        DataError: as for `read_tars`, or the names of the shards contain several splits and none is chosen.
    """
    return _read(path, parts_of_split(path, ".tar", wanted), wanted)


def _read(pattern: str, paths: list[Path], wanted: Wanted) -> Rows:
    given = {role: wanted.options[role] for role in ("image", *ROLES) if role in wanted.options}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        indexes = pool.map(lambda path: index_of(path, given), paths)
        bar = tqdm(indexes, total=len(paths), desc="shards", unit="", disable=None, leave=False)
        tables = [_checked(path, table) for path, table in zip(paths, bar, strict=True)]
    table = pa.concat_tables(tables).combine_chunks()
    shard = np.repeat(np.arange(len(paths)), [len(part) for part in tables])
    if not len(table):
        raise DataError(
            f"{pattern}: contains no samples; add files that share a base name, for example 000.jpg and 000.txt"
        )
    columns: dict[str, pa.Array] = {}
    present = [role for role in ROLES if table[role].null_count < len(table)]
    for role in ROLES:
        if role not in wanted.roles:
            continue
        column = table[role].combine_chunks()
        if role in present:
            columns[role] = _filled(column)
        elif wanted.needs(role, present):
            endings = ", ".join(f".{ending}" for ending in ENDINGS.get(role, ("json",)))
            named = f" {given[role]!r}" if role in given else ""
            raise DataError(
                f"{pattern}: none of its {len(table)} samples has a {role}{named}; add files with the ending "
                f"{endings}, or give the ending of the existing files, or the key in the JSON files, as in "
                f"{wanted.advice(role)}"
            )
    images = None
    if "image" in wanted.roles:
        offsets, sizes = (table[name].to_numpy().astype(np.int64) for name in ("offset", "size"))
        if (offsets >= 0).any():
            images = TarImages(paths, shard, table["image"].combine_chunks(), offsets, sizes)
        elif "image" in wanted.needed:
            named = given.get("image", "000.jpg")
            raise DataError(f"{pattern}: none of its {len(table)} samples has an image; add files such as {named}")
    if images is not None and "caption" in columns:
        _check_names(pattern, images, table["caption"])
    used, others = used_endings(tables)
    choices = []
    if others and images is not None:
        choices.append(f"the image of a sample is its file .{used}, not .{', .'.join(others)}")
    captions = used_captions(tables) if "caption" in columns else []
    if len(captions) > 1:
        choices.append(f"the caption of a sample is its file or JSON key {captions[0]}, not {', '.join(captions[1:])}")
    if choices:
        advice = f"to use another file or key, give its name with {wanted.advice('image' if others else 'caption')}"
        wanted.choices.append(choice_finding(pattern, choices, advice))
    keys = pa.array(np.arange(len(table))) if images is not None else None
    found = {"image": f".{used}"} if images is not None else {}
    found |= {role: given.get(role, role) for role in columns}
    return Rows(pattern, columns, images, keys, found, row="sample")


def _check_names(pattern: str, images: "TarImages", captions: Any) -> None:
    """Raise an error if no sample has both an image and a caption."""
    has_image, has_caption = images.offsets >= 0, captions.is_valid().to_numpy()
    if not (has_image & has_caption).any():
        image, caption = images.names[int(has_image.argmax())], images.names[int(has_caption.argmax())]
        raise DataError(
            f"{pattern}: no sample has both an image and a caption, e.g. the image {image} and the caption "
            f"{caption} belong to different samples; rename the files so that all files of a sample have the same "
            "folder and the same name up to the first dot"
        )


class TarImages(Sequence[Stored]):
    """Images of the samples of all shards; an image is read when it is used."""

    def __init__(
        self, paths: list[Path], shard: np.ndarray[Any, Any], names: pa.Array, offsets: Any, sizes: Any
    ) -> None:
        self.paths = paths
        self.shard = shard
        self.names = names
        self.offsets = offsets
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, index: int) -> Stored: ...
    @overload
    def __getitem__(self, index: slice) -> list[Stored]: ...
    def __getitem__(self, index: int | slice) -> Stored | list[Stored]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[int(index)]
        path = self.paths[int(self.shard[row])]
        return InTar(path, self.names[row].as_py(), int(self.offsets[row]), int(self.sizes[row]))


@dataclass(frozen=True, slots=True)
class InTar(Stored):
    """Image file in a tar file, at a known position."""

    path: Path
    member: str
    offset: int
    length: int

    @property
    def name(self) -> str:
        return Path(self.member).name

    @property
    def size(self) -> int:
        return self.length

    def __str__(self) -> str:
        return f"{self.path}/{self.member}"

    def read_bytes(self) -> bytes:
        if self.offset < 0:
            raise OSError("the sample has no image")
        with open_file(self.path) as file:
            file.seek(self.offset)
            return file.read(self.length)


def _checked(path: Path, table: pa.Table | DataError) -> pa.Table:
    if isinstance(table, DataError):
        raise table
    return table


def _filled(column: pa.Array) -> pa.Array:
    lists = column.to_pylist()
    if all(values is not None and len(values) == 1 for values in lists):
        return strings_or_lists([values[0] for values in lists])
    return strings_or_lists([values or [""] for values in lists])
