"""Shards: tar or Parquet files of images with their texts. The same samples always give the same bytes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
from pyarrow import parquet

from clipkit.data.encoded import Encoded

Format = Literal["tar", "parquet"]

# Rows per group of a Parquet file, which readers hold in memory; the number that the Hub's viewer asks for with images.
_GROUP_ROWS = 100


@dataclass(frozen=True, slots=True)
class ShardSample:
    """An image with its texts."""

    key: str
    """Position in the source, in digits."""
    name: str
    """Name of the image in the source."""
    image: Encoded
    texts: Mapping[str, Sequence[str]]
    """Texts by role: caption, and negative_caption and paraphrase if the source has them."""


def write_shard(path: Path, samples: Iterable[ShardSample], roles: Sequence[str]) -> str | None:
    """Write a shard under a temporary name, then rename it; return its SHA-256, or None if there are no samples.

    Args:
        path: path of the shard; its suffix is the format.
        samples: images with texts.
        roles: roles of the texts that every sample has.

    Raises:
        OSError: the shard cannot be written, e.g. because the disk is full.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            count = _WRITERS[path.suffix](file, samples, roles)
            file.flush()
            os.fsync(file.fileno())
        if not count:
            return None
        sha256 = sha256_of(temporary)
        temporary.replace(path)
        return sha256
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the path of an unfinished shard, which no pattern of shards matches."""
    return path.with_name(f".{path.name}.writing")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tar(file: IO[bytes], samples: Iterable[ShardSample], roles: Sequence[str]) -> int:
    """Write WebDataset's layout: 000000.jpg, and 000000.json with the texts as lists and the image's name."""
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for count, sample in enumerate(samples, 1):  # noqa: B007
            texts = {role: list(sample.texts[role]) for role in roles} | {"name": sample.name}
            for extension, content in (
                (sample.image.ending, sample.image.content),
                ("json", json.dumps(texts, ensure_ascii=False).encode()),
            ):
                member = tarfile.TarInfo(f"{sample.key}.{extension}")  # its time, user and group are 0
                member.size = len(content)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(content))
    return count


def _write_parquet(file: IO[bytes], samples: Iterable[ShardSample], roles: Sequence[str]) -> int:
    """Write the Hub's layout: the columns image, one list of strings per role, and name."""
    from datasets import Features, Image, Value

    texts = {role: [Value("string")] for role in roles}
    schema = Features({"image": Image(), **texts, "name": Value("string")}).arrow_schema
    # Dictionaries and statistics would contain copies of the images.
    table = parquet.ParquetWriter(file, schema, use_dictionary=False, write_statistics=False)
    rows: list[dict[str, Any]] = []
    count = 0
    with table:
        for count, sample in enumerate(samples, 1):  # noqa: B007
            image = {"bytes": sample.image.content, "path": f"{sample.key}.{sample.image.ending}"}
            rows.append({"image": image, **sample.texts, "name": sample.name})
            if len(rows) == _GROUP_ROWS:
                table.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
    return count


_WRITERS: Mapping[str, Callable[[IO[bytes], Iterable[ShardSample], Sequence[str]], int]] = {
    ".tar": _write_tar,
    ".parquet": _write_parquet,
}
