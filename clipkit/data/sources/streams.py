"""Sources that are read from front to back: shards at an address, and data sets of the Hub, without listing them."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from braceexpand import braceexpand
from PIL import Image

from clipkit.data.sources.columns import Wanted, split_options
from clipkit.data.sources.tars import grouped, said_of
from clipkit.errors import DataError, one_line
from clipkit.images import Stored

_ROLES = ("image", "caption")


@dataclass(frozen=True, slots=True)
class Held(Stored):
    """An image's file in memory."""

    where: str
    content: bytes

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2]

    @property
    def size(self) -> int:
        return len(self.content)

    def __str__(self) -> str:
        return self.where

    def read_bytes(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class StreamSample:
    """An image and its captions, as they come."""

    image: Held
    captions: list[str]

    @property
    def identity(self) -> int:
        """63 bits of the hash of where it lies."""
        return _hash(self.image.where)


@dataclass(frozen=True)
class Stream:
    """Parts that are each read from front to back.

    Args:
        name: as the user wrote it.
        parts: addresses of shards, or numbers of a Hub data set's own parts.
        options: what the user wrote after `?`.
    """

    name: str
    parts: Sequence[str]
    options: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of what it is called; what lies there is not read for it."""
        return hashlib.sha256("\0".join([self.name, *self.parts]).encode()).hexdigest()

    def samples(self, part: str) -> Iterator[StreamSample]:
        """Those of one part, in its order.

        Raises:
            DataError: it cannot be read, or a sample lacks its image or caption.
        """
        source = _of_hub(self, int(part)) if self.name.startswith("hf:") else _of_tar(part)
        try:
            yield from source
        except DataError:
            raise
        except Exception as error:  # protocols and archives have errors of their own
            why = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
            raise DataError(f"{part if '://' in part else self.name}: cannot be read on ({why}); try again") from None


def stream_of(source: str) -> Stream | None:
    """The stream that a source means: shards at an address, or what says ?stream=true; None: it is indexable.

    Raises:
        DataError: an option is not known, or the Hub does not have it.
    """
    name, options = split_options(source)
    asked = options.get("stream", "false").lower() == "true"
    if not asked and not ("://" in name and name.endswith(".tar")):
        return None
    unknown = [option for option in options if option not in (*_ROLES, "stream", "split")]
    if unknown:
        raise DataError(f"{source}: {unknown[0]} is no option of a stream; options are image, caption, split, stream")
    if name.startswith("hf:"):
        stream = Stream(name, [], options)
        return Stream(name, [str(part) for part in range(_hub(stream).num_shards)], options)
    if not name.endswith(".tar"):
        raise DataError(f"{source}: only .tar shards and hf:NAME can be streamed; leave out ?stream=true")
    try:
        return Stream(name, list(braceexpand(name)), options)
    except ValueError:
        raise DataError(f"{source}: its braces do not match; write shards-{{000..099}}.tar") from None


def _of_tar(address: str) -> Iterator[StreamSample]:
    import fsspec

    with fsspec.open(address, "rb") as opened:
        file = _Tailed(opened)
        yield from _of_open_tar(address, file)
        while file.read(1 << 20):
            pass
        if any(file.tail):  # tarfile takes a tar that is cut off between two files for a whole one
            raise DataError(f"{address}: is cut off; fetch or write it again, or leave it out")


class _Tailed:
    """A file that remembers what it gave last."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.tail = b""

    def read(self, size: int) -> bytes:
        content = bytes(self.file.read(size))
        self.tail = (self.tail + content)[-2 * tarfile.BLOCKSIZE :]
        return content


def _of_open_tar(address: str, file: _Tailed) -> Iterator[StreamSample]:
    with tarfile.open(fileobj=file, mode="r|") as tar:  # type: ignore[call-overload]
        for key, members in grouped(_read(tar)):
            image = next(
                (own for ending, own in members.items() if f".{ending}" in Image.registered_extensions()), None
            )
            texts = {ending: content for ending, (_, content) in members.items()}
            captions = said_of(f"{address}/{key}", texts, "caption")
            if image is None or not captions:
                lacking = "image" if image is None else "caption"
                raise DataError(f"{address}: sample {key} has no {lacking}; leave it out of the shard")
            yield StreamSample(Held(f"{address}/{image[0]}", image[1]), captions)


def _read(tar: tarfile.TarFile) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for member in tar:
        opened = tar.extractfile(member) if member.isfile() else None
        if opened is not None:
            yield member.name, (member.name, opened.read())


def _of_hub(stream: Stream, part: int) -> Iterator[StreamSample]:
    data = _hub(stream)
    own = data.shard(num_shards=data.num_shards, index=part) if data.num_shards > 1 else data
    columns: dict[str, str] = {}
    for number, row in enumerate(own):
        if not columns:
            wanted = Wanted(stream.name, stream.options, _ROLES, ())
            columns = wanted.columns_among(stream.name, list(row))
        image, captions = row[columns["image"]], row[columns["caption"]]
        where = f"{stream.name}/part {part}/row {number + 1}"
        content = image.get("bytes") if isinstance(image, dict) else image
        said = [str(own).strip() for own in (captions if isinstance(captions, list) else [captions]) if own]
        if not isinstance(content, bytes) or not said:
            lacking = "image of its own" if not isinstance(content, bytes) else "caption"
            raise DataError(f"{where}: has no {lacking}; leave it out, or read the data set without ?stream=true")
        yield StreamSample(Held(where, content), said)


def _hub(stream: Stream) -> Any:
    """The data set as the Hub streams it, with images as their files."""
    import datasets

    repository, _, split = stream.name.removeprefix("hf:").partition(":")
    try:
        split = split or stream.options.get("split", "train")
        data = datasets.load_dataset(repository, split=split, streaming=True)
        for name, feature in (data.features or {}).items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
    except Exception as error:  # whatever the Hub's libraries raise
        raise DataError(
            f"{stream.name}: cannot be streamed ({one_line(error)}); check the name and the split"
        ) from None
    return data


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def caption_identity(caption: str) -> int:
    """Equal strings have equal ones."""
    return _hash(caption)
