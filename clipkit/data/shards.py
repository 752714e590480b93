"""Writer of shards: tar or Parquet files with images and texts. Equal samples always give equal bytes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
from pyarrow import parquet

from clipkit.data.encoded import Encoded

Format = Literal["tar", "parquet"]

# Rows per row group of a Parquet file, which readers hold in memory; the Hub recommends this number for images.
_GROUP_ROWS = 100


@dataclass(frozen=True, slots=True)
class ShardSample:
    """An image with its texts, as written to a shard."""

    key: str
    """Position in the source, as a string of digits; the base name of the files of the sample."""
    name: str
    """Name of the image in the source."""
    image: Encoded
    texts: Mapping[str, Sequence[str]]
    """Texts by role: caption, and, if the source has them, negative_caption and paraphrase."""


def write_shard(path: Path, samples: Iterator[ShardSample]) -> str | None:
    """Write a shard, and return its SHA-256. If there are no samples, write nothing and return None.

    An interruption leaves no partial shard at `path`.

    Args:
        path: path of the shard; the extension, .tar or .parquet, determines the format.
        samples: images with texts; all samples have texts of the same roles.

    Raises:
        OSError: the shard cannot be written, e.g. because the disk is full.
    """
    first = next(samples, None)
    if first is None:
        return None
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        with temporary.open("wb") as file:
            if path.suffix == ".parquet":
                _write_parquet(file, chain([first], samples), first.texts)
            else:
                _write_tar(file, chain([first], samples))
            file.flush()
            os.fsync(file.fileno())
        sha256 = sha256_of(temporary)
        temporary.replace(path)
        return sha256
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the path of an unfinished shard. Patterns that select shards, e.g. `*.tar`, do not match it."""
    return path.with_name(f".{path.name}.writing")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tar(file: IO[bytes], samples: Iterator[ShardSample]) -> None:
    """Write a tar file in WebDataset's layout.

    A sample has two files, e.g. 000000.jpg, and 000000.json with lists of texts and the name of the image.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            texts = json.dumps({**sample.texts, "name": sample.name}, ensure_ascii=False)
            for extension, content in ((sample.image.ending, sample.image.content), ("json", texts.encode())):
                member = tarfile.TarInfo(f"{sample.key}.{extension}")  # time, user and group stay 0
                member.size = len(content)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(content))


def _write_parquet(file: IO[bytes], samples: Iterator[ShardSample], roles: Iterable[str]) -> None:
    """Write a Parquet file in the Hugging Face Hub's layout: image, name, and a list of strings per role."""
    from datasets import Features, Image, Value

    texts = {role: [Value("string")] for role in roles}
    schema = Features({"image": Image(), **texts, "name": Value("string")}).arrow_schema
    # Dictionaries and statistics of Parquet would contain copies of the images.
    with parquet.ParquetWriter(file, schema, use_dictionary=False, write_statistics=False) as table:
        while group := list(islice(samples, _GROUP_ROWS)):
            rows = []
            for sample in group:
                image = {"bytes": sample.image.content, "path": f"{sample.key}.{sample.image.ending}"}
                rows.append({"image": image, **sample.texts, "name": sample.name})
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
