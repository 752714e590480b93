"""Sources that are read sequentially: shards at an address, and streamed datasets of the Hub."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from braceexpand import braceexpand

from clipkit.data.sources.columns import Wanted, split_options
from clipkit.data.sources.tars import grouped, image_among, values_of_role
from clipkit.errors import DataError, one_line
from clipkit.images import InMemory

_ROLES = ("image", "caption")


@dataclass(frozen=True)
class StreamSample:
    """Image with its captions."""

    image: InMemory
    captions: list[str]

    @property
    def identity(self) -> int:
        """63-bit hash of the location of the image."""
        return identity_of(self.image.location)


@dataclass(frozen=True)
class Stream:
    """Source in parts, each of which is read sequentially.

    Args:
        name: the source as the user wrote it, without options.
        parts: addresses of shards, or numbers of the parts of a Hub dataset.
        options: options that the user wrote after `?`.
    """

    name: str
    parts: Sequence[str]
    options: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the name and the parts; the content is not read."""
        return hashlib.sha256("\0".join([self.name, *self.parts]).encode()).hexdigest()

    def samples(self, part: str) -> Iterator[StreamSample]:
        """Yield the samples of a part, in its order.

        Raises:
            DataError: the part cannot be read, or a sample has no image or no caption.
        """
        source = _of_hub(self, int(part)) if self.name.startswith("hf:") else _of_tar(part)
        try:
            yield from source
        except DataError:
            raise
        except Exception as error:  # protocols and archives have many kinds of errors
            why = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
            raise DataError(
                f"{part if '://' in part else self.name}: cannot be read to its end ({why}); try again"
            ) from None


def stream_of(source: str) -> Stream | None:
    """Return the stream of a source at an address or with ?stream=true; None for a source that can be indexed.

    Raises:
        DataError: an option is unknown, the source cannot be streamed, or the Hub does not have it.
    """
    name, options = split_options(source)
    asked = options.get("stream", "false").lower() == "true"
    if not asked and not ("://" in name and name.endswith(".tar")):
        return None
    unknown = [option for option in options if option not in (*_ROLES, "stream", "split")]
    if unknown:
        raise DataError(
            f"{source}: the option {unknown[0]} is unknown for a stream; use image, caption, split or stream"
        )
    if name.startswith("hf:"):
        stream = Stream(name, [], options)
        return Stream(name, [str(part) for part in range(_hub(stream).n_shards)], options)
    if not name.endswith(".tar"):
        raise DataError(f"{source}: only .tar shards and hf:NAME can be streamed; remove ?stream=true")
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
        if any(file.tail):  # tarfile accepts a tar that is truncated between two members
            raise DataError(f"{address}: is truncated; fetch or write it again, or leave it out")


class _Tailed:
    """File that remembers the last bytes that were read."""

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
            image = image_among(members)
            texts = {ending: content for ending, (_, content) in members.items()}
            captions = values_of_role(f"{address}/{key}", texts, "caption")
            if image is None or not captions:
                missing = "image" if image is None else "caption"
                raise DataError(f"{address}: sample {key} has no {missing}; leave it out of the shard")
            yield StreamSample(InMemory(f"{address}/{image[0]}", image[1]), captions)


def _read(tar: tarfile.TarFile) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for member in tar:
        opened = tar.extractfile(member) if member.isfile() else None
        if opened is not None:
            yield member.name, (member.name, opened.read())


def _of_hub(stream: Stream, part: int) -> Iterator[StreamSample]:
    data = _hub(stream)
    shard = data.shard(num_shards=data.n_shards, index=part) if data.n_shards > 1 else data
    columns: dict[str, str] = {}
    for number, row in enumerate(shard):
        if not columns:
            wanted = Wanted(stream.name, stream.options, _ROLES, ())
            columns = wanted.columns_among(stream.name, list(row))
        image, captions = row[columns["image"]], row[columns["caption"]]
        where = f"{stream.name}/part {part}/row {number + 1}"
        content = image.get("bytes") if isinstance(image, dict) else image
        texts = [str(text).strip() for text in (captions if isinstance(captions, list) else [captions]) if text]
        if not isinstance(content, bytes) or not texts:
            missing = "embedded image" if not isinstance(content, bytes) else "caption"
            raise DataError(f"{where}: has no {missing}; leave it out, or read the dataset without ?stream=true")
        yield StreamSample(InMemory(where, content), texts)


def _hub(stream: Stream) -> Any:
    """Return the streamed dataset of the Hub, with images as undecoded files."""
    import datasets

    repository, _, split = stream.name.removeprefix("hf:").partition(":")
    try:
        split = split or stream.options.get("split", "train")
        data = datasets.load_dataset(repository, split=split, streaming=True)
        for name, feature in (data.features or {}).items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
    except Exception as error:  # the libraries of the Hub raise many kinds of errors
        raise DataError(
            f"{stream.name}: cannot be streamed ({one_line(error)}); check the name and the split"
        ) from None
    return data


def identity_of(text: str) -> int:
    """Return a 63-bit hash, which is equal for equal strings."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
