"""Sources that are read sequentially: shards given by URL, and streamed datasets of the Hub."""

import hashlib
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from braceexpand import braceexpand
from torch import Tensor
from torch.utils.data import get_worker_info

from clipkit.data.shared_memory import shared_zeros
from clipkit.data.sources.choice import Peek
from clipkit.data.sources.columns import Wanted, exists, name_revision_and_split, split_options
from clipkit.data.sources.members import BoundedMember, check_member
from clipkit.data.sources.read_ahead import ReadAhead
from clipkit.data.sources.remote import ATTEMPTS, BACK_OFF, TIMEOUT
from clipkit.data.sources.samples import adjacent, image_endings, values_of_role
from clipkit.data.sources.urls import STREAMS, is_address, protocol_of
from clipkit.errors import DataError, one_line, without_credentials
from clipkit.images import InMemory
from clipkit.opening import open_file

_ROLES = ("image", "caption")
_SILENCE = 60.0  # seconds without data after which the connection counts as lost
_COUNTERS = 64  # one counter per loader worker, because additions of several workers are not atomic
# Largest number of bytes after the end of the archive. tar pads its last record, which has a few megabytes at most.
_MOST_PADDING = 1 << 26


@dataclass(frozen=True)
class StreamSample:
    """An image of a stream with its captions."""

    image: InMemory
    captions: list[str]

    @property
    def identity(self) -> int:
        """ID of the image: a 63-bit hash of its location."""
        return identity_of(self.image.location)


@dataclass(frozen=True)
class Stream:
    """A source that is divided into parts, each of which is read sequentially.

    Args:
        name: source as given by the user, without options.
        parts: URLs or paths of shards, or numbers of the parts of a Hub dataset.
        options: options that the user wrote after `?`.
        reopened: number of lost connections that were opened again, one counter per loader worker.
    """

    name: str
    parts: Sequence[str]
    options: dict[str, str]
    reopened: Tensor = field(default_factory=lambda: shared_zeros(_COUNTERS), compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        """Hash of the names of the source and of its parts, not of their content."""
        return hashlib.sha256("\0".join([self.name, *self.parts]).encode()).hexdigest()

    def samples(self, part: str) -> Iterator[StreamSample]:
        """Yield the samples of a part in order.

        Raises:
            DataError: the part cannot be read, or a sample has no image or no caption.
        """
        source = _of_hub(self, int(part)) if self.name.startswith("hf:") else _of_tar(part, self.options, self._count)
        try:
            yield from source
        except DataError:
            raise
        except Exception as error:  # protocols and archives raise errors of many kinds
            why = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
            raise DataError(
                f"{part if '://' in part else self.name}: cannot be read completely ({why}); check the "
                "network and try again"
            ) from None

    def _count(self) -> None:
        worker = get_worker_info()
        self.reopened[0 if worker is None else worker.id % _COUNTERS] += 1


def stream_of(source: str) -> Stream | None:
    """Return the stream for a URL of .tar shards or a source with the option `?stream=true`; None for other sources.

    Raises:
        DataError: an option is unknown, the source cannot be streamed, or the Hub has no such dataset.
    """
    name, options = split_options(source)
    asked = options.get("stream", "false").lower() == "true"
    if not asked and not ("://" in name and name.endswith(".tar")):
        return None
    unknown = [option for option in options if option not in (*_ROLES, "stream", "split")]
    if unknown:
        raise DataError(
            f"{source}: a stream does not support the option {unknown[0]}; remove this option (supported options: "
            "image, caption, split, stream)"
        )
    if name.startswith("hf:"):
        stream = Stream(name, [], options)
        return Stream(name, [str(part) for part in range(_hub(stream).n_shards)], options)
    if not name.endswith(".tar"):
        raise DataError(f"{source}: only .tar shards and hf:NAME can be streamed; remove ?stream=true")
    try:
        parts = [name] if exists(name) else list(braceexpand(name))
        for part in parts:
            if is_address(part):
                protocol_of(part, STREAMS)
        return Stream(without_credentials(name), parts, options)
    except ValueError:
        raise DataError(
            f"{source}: the braces in its name do not match; write, for example, shards-{{000..099}}.tar"
        ) from None


def _of_tar(address: str, options: Mapping[str, str], reopened: Callable[[], None]) -> Iterator[StreamSample]:
    ahead = ReadAhead(lambda: _open(address), reopened=reopened) if is_address(address) else open_file(address)
    with ahead as opened:
        file = _Tailed(opened)
        yield from _of_open_tar(address, file, options)
        padding = 0
        while block := file.read(1 << 20):
            padding += len(block)
            if padding > _MOST_PADDING:
                raise DataError(
                    f"{address}: has {padding:,} or more bytes after the end of the tar; create the tar again"
                )
        if any(file.tail):  # tarfile accepts a tar that is truncated between two members
            raise DataError(f"{address}: is truncated; download or create the file again, or leave it out")


def _open(address: str) -> Any:
    """Open a shard at a URL.

    Raises:
        DataError: the protocol is not allowed (see `protocol_of`).
        Exception: the shard cannot be opened. The type of the error depends on the protocol.
    """
    protocol = protocol_of(address, STREAMS)
    import fsspec

    settings: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        settings["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=_SILENCE)}
    for attempt in range(ATTEMPTS):
        try:
            return fsspec.filesystem(protocol, **settings).open(address, "rb")
        except (PermissionError, ImportError, ValueError):
            raise
        except Exception as error:  # each protocol has its own errors
            # fsspec turns every http error into FileNotFoundError.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
            if cause is None or 400 <= getattr(cause, "status", 0) < 500:
                raise
            if attempt == ATTEMPTS - 1:
                raise cause from None
            time.sleep(BACK_OFF * 2**attempt)
    raise AssertionError("unreachable")


class _Tailed:
    """File that remembers the last two blocks that were read: the end marker of a complete tar file."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.tail = b""

    def read(self, size: int) -> bytes:
        content = bytes(self.file.read(size))
        self.tail = (self.tail + content)[-2 * tarfile.BLOCKSIZE :]
        return content


def _of_open_tar(address: str, file: _Tailed, options: Mapping[str, str]) -> Iterator[StreamSample]:
    with tarfile.open(fileobj=file, mode="r|", tarinfo=BoundedMember) as tar:  # type: ignore[call-overload]
        for key, members in adjacent(_read(tar)):
            endings = [options["image"].lower()] if "image" in options else image_endings(members)
            image = members.get(endings[0]) if endings else None
            texts = {ending: content for ending, (_, content) in members.items()}
            captions = values_of_role(f"{address}/{key}", texts, "caption", options.get("caption"))
            if image is None or not captions:
                missing = "image" if image is None else "caption"
                raise DataError(
                    f"{address}: sample {key} has no {missing} among its files "
                    f"{', '.join(list(members)[:5])}; sort the files of the shard by name (in a stream, the files of "
                    "a sample must directly follow each other), add the missing file, or remove the sample"
                )
            yield StreamSample(InMemory(f"{address}/{image[0]}", image[1]), captions)


def _read(tar: tarfile.TarFile) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for member in tar:
        opened = tar.extractfile(member) if member.isfile() else None
        if opened is not None:
            check_member(member)
            yield member.name, (member.name, opened.read())


def _of_hub(stream: Stream, part: int) -> Iterator[StreamSample]:
    data = _hub(stream)
    shard = data.shard(num_shards=data.n_shards, index=part) if data.n_shards > 1 else data
    columns: dict[str, str] = {}
    for number, row in enumerate(shard):
        if not columns:
            wanted = Wanted(stream.name, stream.options, _ROLES, ())
            columns = wanted.columns_among(stream.name, list(row), _peek(row))
        image, captions = row[columns["image"]], row[columns["caption"]]
        where = f"{stream.name}/part {part}/row {number + 1}"
        content = image.get("bytes") if isinstance(image, dict) else image
        texts = [str(text).strip() for text in (captions if isinstance(captions, list) else [captions]) if text]
        if not isinstance(content, bytes) or not texts:
            missing = "embedded image" if not isinstance(content, bytes) else "caption"
            raise DataError(f"{where}: has no {missing}; add the {missing}, or read the dataset without ?stream=true")
        yield StreamSample(InMemory(where, content), texts)


def _peek(row: dict[str, Any]) -> Peek:
    return lambda name: [row[name]]


def _hub(stream: Stream) -> Any:
    """Return a dataset of the Hub as a stream, without decoding its images."""
    import datasets

    repository, revision, split = name_revision_and_split(stream.name.removeprefix("hf:"))
    try:
        split = split or stream.options.get("split", "train")
        data = datasets.load_dataset(repository, split=split, revision=revision or None, streaming=True)
        for name, feature in (data.features or {}).items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
    except Exception as error:  # the libraries of the Hub raise errors of many kinds
        raise DataError(
            f"{stream.name}: cannot be streamed ({one_line(error)}); check the name and the split"
        ) from None
    return data


def identity_of(text: str) -> int:
    """Return a 63-bit hash of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
