"""Writing shards of images with their texts, as tar or Parquet files.

A shard is written under a temporary name and renamed when it is complete. The same samples give the same bytes: a shard
contains no time and no user name.
"""

import hashlib
import io
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
from pyarrow import parquet

from clipkit.data.encoded import Encoded

Format = Literal["tar", "parquet"]

# Rows that a Parquet reader loads together; the viewer of the Hub recommends few rows for images.
_ROWS_IN_GROUP = 100
_BUFFER = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class ShardSample:
    """Image with its texts, to be written to a shard."""

    key: str
    """Unique key: the position in the source, in digits."""
    name: str
    """Name of the image in its source."""
    image: Encoded
    texts: Mapping[str, Sequence[str]]
    """Texts by role: caption and, if the source has them, negative_caption and paraphrase."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Number of samples, size and hash of a shard file."""

    samples: int
    bytes: int
    sha256: str


class ShardWriter(ABC):
    """Writer of a shard, under a temporary name that no pattern of shards matches.

    Args:
        path: final path of the shard.
        roles: roles of the texts of each sample.
    """

    def __init__(self, path: Path, roles: Sequence[str]) -> None:
        self.path = path
        self.roles = roles
        self.aside = aside_of(path)
        self._file = _Hashed(self.aside)
        self.samples = 0

    @abstractmethod
    def _write(self, sample: ShardSample) -> None: ...
    @abstractmethod
    def _end(self) -> None: ...

    def add(self, sample: ShardSample) -> None:
        """Write a sample.

        Raises:
            OSError: the disk is full.
        """
        self._write(sample)
        self.samples += 1

    def finish(self) -> Shard:
        """Complete the file and rename it to its final path.

        Raises:
            OSError: the disk is full.
        """
        self._end()
        self._file.sync()
        self._file.close()
        self.aside.replace(self.path)
        return Shard(self.samples, self._file.written, self._file.digest.hexdigest())

    def drop(self) -> None:
        """Delete the temporary file; after `finish`, do nothing."""
        self._file.close()
        self.aside.unlink(missing_ok=True)


class TarWriter(ShardWriter):
    """Writer of WebDataset shards: 000000.jpg with 000000.json, which contains lists of texts and the image name."""

    def __init__(self, path: Path, roles: Sequence[str]) -> None:
        super().__init__(path, roles)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def _write(self, sample: ShardSample) -> None:
        content = {role: list(texts) for role, texts in sample.texts.items()} | {"name": sample.name}
        self._member(f"{sample.key}.{sample.image.ending}", sample.image.content)
        self._member(f"{sample.key}.json", json.dumps(content, ensure_ascii=False).encode())

    def _member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, user and group are 0 by default
        member.size = len(content)
        member.mode = 0o644
        self._tar.addfile(member, io.BytesIO(content))

    def _end(self) -> None:
        self._tar.close()


class ParquetWriter(ShardWriter):
    """Writer of Parquet shards for the Hub: an image column for `datasets`, lists of texts by role, and the name."""

    def __init__(self, path: Path, roles: Sequence[str]) -> None:
        from datasets import Features, Image, List, Value

        super().__init__(path, roles)
        texts = {role: List(Value("string")) for role in roles}
        self._schema = Features({"image": Image(), **texts, "name": Value("string")}).arrow_schema
        self._rows: list[dict[str, Any]] = []
        # Dictionaries and statistics of images would contain copies of the images.
        self._table = parquet.ParquetWriter(
            pa.PythonFile(self._file, mode="w"), self._schema, use_dictionary=False, write_statistics=False
        )

    def _write(self, sample: ShardSample) -> None:
        image = {"bytes": sample.image.content, "path": f"{sample.key}.{sample.image.ending}"}
        self._rows.append({"image": image, **sample.texts, "name": sample.name})
        if len(self._rows) == _ROWS_IN_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        self._table.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _end(self) -> None:
        if self._rows:
            self._write_group()
        self._table.close()


WRITERS: Mapping[Format, type[ShardWriter]] = {"tar": TarWriter, "parquet": ParquetWriter}


def read_shard(path: Path) -> Shard | None:
    """Return the content of a shard file on disk; None if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                samples = len({member.name.partition(".")[0] for member in tar})
        else:
            samples = parquet.read_metadata(path).num_rows
        return Shard(samples, path.stat().st_size, sha256)
    except (OSError, tarfile.TarError, EOFError, ValueError, pa.ArrowException):
        return None


def aside_of(path: Path) -> Path:
    """Return the temporary path of a shard."""
    return path.with_name(f".{path.name}.writing")


class _Hashed(io.RawIOBase):
    """File that is written sequentially and hashed at the same time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file: IO[bytes] = path.open("wb", buffering=_BUFFER)
        self.digest = hashlib.sha256()
        self.written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.written

    def write(self, content: Any) -> int:
        data = bytes(content)
        if self.closed:  # Arrow also ends the file of a shard that was dropped
            return len(data)
        self._file.write(data)
        self.digest.update(data)
        self.written += len(data)
        return len(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()
