"""Reader of local WebDataset shards: tar files in which files with the same name up to the first dot form a sample.

Each tar file is scanned once for the positions of its files. They are stored in the user's cache folder, so that
samples can then be read in any order.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from braceexpand import braceexpand
from pyarrow import parquet
from tqdm import tqdm

from clipkit.data.sources.columns import Rows, Wanted, exists
from clipkit.data.sources.json_rows import strings_or_lists
from clipkit.data.sources.members import TEXTS, BoundedMember, check_member
from clipkit.data.sources.samples import ENDINGS, grouped, image_among, values_of_role
from clipkit.errors import DataError, one_line
from clipkit.files import cache_folder, is_file, replacing
from clipkit.images import Stored
from clipkit.opening import check_file, open_file

_ROLES = ("caption", "label", "negative_caption", "paraphrase")
_LAYOUT = "3"  # version of the cached index

T = TypeVar("T")


def shards_of(pattern: str) -> list[Path]:
    """Return the files of a pattern such as `shards-{000..099}.tar` or `shards-*.tar`, or of a single name.

    Raises:
        DataError: a file is missing, or the braces do not match.
    """
    if exists(pattern):
        return [_shard(Path(pattern).expanduser())]
    try:
        names = list(braceexpand(pattern))
    except ValueError:
        raise DataError(f"{pattern}: its braces do not match; write, for example, shards-{{000..099}}.tar") from None
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        is_pattern = bool(set("*?[") & set(path.name)) and not is_file(path)
        paths += (sorted(path.parent.glob(path.name)) if is_pattern else []) or [path]
    missing = [path for path in paths if not is_file(path)]
    if missing:
        count = f"{len(missing)} of its {len(paths)} shards are missing, the first is " if len(paths) > 1 else ""
        raise DataError(f"{pattern}: {count}{missing[0]}: file not found; check the pattern")
    return paths


def _shard(path: Path) -> Path:
    try:
        check_file(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a tar") from None
    return path


def literal(folder: Path) -> str:
    """Return the name of a folder for the beginning of a pattern, in which its braces have no meaning."""
    return re.sub(r"([{}\\])", r"\\\1", str(folder))


def read_tars(pattern: str, wanted: Wanted) -> Rows:
    """Read the rows of local shards, in the order of the shards and of their files.

    Raises:
        DataError: a shard is missing or damaged, or no sample has a needed role.
    """
    paths = shards_of(pattern)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = tqdm(pool.map(_index_of, paths), total=len(paths), desc="shards", unit="", disable=None, leave=False)
        tables = [_checked(path, table) for path, table in zip(paths, bar, strict=True)]
    table = pa.concat_tables(tables).combine_chunks()
    shard = np.repeat(np.arange(len(paths)), [len(part) for part in tables])
    if not len(table):
        raise DataError(
            f"{pattern}: contains no samples; the files of a sample share one base name, for example "
            "000.jpg and 000.txt"
        )
    columns: dict[str, pa.Array] = {}
    for role in _ROLES:
        if role not in wanted.roles:
            continue
        column = table[role].combine_chunks()
        if column.null_count < len(column):
            columns[role] = _filled(column)
        elif role in wanted.needed:
            endings = ", ".join(f".{ending}" for ending in ENDINGS[role])
            raise DataError(f"{pattern}: none of its {len(table)} samples has a {role}; add it in a file {endings}")
    images = None
    if "image" in wanted.roles:
        offsets, sizes = (table[name].to_numpy().astype(np.int64) for name in ("offset", "size"))
        if (offsets >= 0).any():
            images = TarImages(paths, shard, table["image"].combine_chunks(), offsets, sizes)
        elif "image" in wanted.needed:
            raise DataError(f"{pattern}: none of its {len(table)} samples has an image, such as 000.jpg; add it")
    keys = pa.array(np.arange(len(table))) if images is not None else None
    return Rows(pattern, columns, images, keys, row="sample")


class TarImages(Sequence[Stored]):
    """Sequence of the images of shards, one per sample."""

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
    """Image file in a tar file, located by the position of its bytes."""

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


def _index_of(path: Path) -> pa.Table | DataError:
    """Return one row per sample: name, offset and size of its image, its captions and its label.

    The result is cached.
    """
    file = path.stat()
    state = f"{_LAYOUT} {file.st_size} {file.st_mtime_ns}".encode()
    cached = cache_folder() / "shards" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.parquet"
    try:
        table = parquet.read_table(cached)
        if table.schema.metadata is not None and table.schema.metadata.get(b"state") == state:
            return table
    except (OSError, pa.ArrowException):
        pass
    try:
        table = _scan(path).replace_schema_metadata({b"state": state})
    except DataError as error:
        return error
    # tarfile trusts the headers, so that damaged ones make it fail in many ways.
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        return DataError(f"{path}: is a damaged tar file ({reason}); download or create it again, or leave it out")
    with suppress(OSError):  # a cache that cannot be written only costs time
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as temporary:
            parquet.write_table(table, temporary)
    return table


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    check_member(member)
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()


def _checked(path: Path, table: pa.Table | DataError) -> pa.Table:
    if isinstance(table, DataError):
        raise table
    return table


def _scan(path: Path) -> pa.Table:
    rows: dict[str, list[Any]] = {name: [] for name in ("image", "offset", "size", *_ROLES)}
    _check_end(path)
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedMember) as tar:
        end = path.stat().st_size
        for key, members in grouped(_members(tar)):
            for member in members.values():
                if member.offset_data + member.size > end:
                    raise DataError(
                        f"{path}: is truncated within {member.name}; download or create it again, or leave it out"
                    )
            image = image_among(members)
            rows["image"].append(key if image is None else image.name)
            rows["offset"].append(-1 if image is None else image.offset_data)
            rows["size"].append(-1 if image is None else image.size)
            contents = {ending: _content(tar, members[ending]) for ending in TEXTS if ending in members}
            for role in _ROLES:
                rows[role].append(values_of_role(f"{path}/{key}", contents, role))
        _check_rest(path, tar.offset)
    several = pa.large_list(pa.large_string())
    return pa.table(
        {
            "image": pa.array(rows["image"], pa.large_string()),
            "offset": pa.array(rows["offset"], pa.int64()),
            "size": pa.array(rows["size"], pa.int64()),
            **{role: pa.array(rows[role], several) for role in _ROLES},
        }
    )


def _check_end(path: Path) -> None:
    """Raise an error if the end-of-archive blocks are missing.

    The module tarfile accepts a file that is truncated between members.
    """
    with open_file(path) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2 * tarfile.BLOCKSIZE))
        if any(file.read()):
            raise DataError(f"{path}: is not a tar file, or is truncated; download or create it again, or leave it out")


def _check_rest(path: Path, start: int) -> None:
    """Raise an error if there is data after the last member: tarfile treats a damaged header as the end of the file."""
    with open_file(path) as file:
        file.seek(start)
        while block := file.read(1 << 20):
            if any(block):
                raise DataError(
                    f"{path}: is a damaged tar file (no header at byte {start}, but more data follows); download "
                    "or create "
                    "it again, or leave it out"
                )


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in tar:
        if member.size < 0:  # the next header would precede this one: an endless loop
            raise tarfile.ReadError(f"{member.size} bytes in {member.name}")
        if member.isfile():
            yield member.name, member


def _filled(column: pa.Array) -> pa.Array:
    lists = column.to_pylist()
    if all(values is not None and len(values) == 1 for values in lists):
        return strings_or_lists([values[0] for values in lists])
    return strings_or_lists([values or [""] for values in lists])
