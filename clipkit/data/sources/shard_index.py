"""Index of a local tar shard: positions of the images, and texts. The user's cache folder stores the index."""

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from clipkit.data.sources.choice import PEEKED
from clipkit.data.sources.members import TEXTS, BoundedMember, check_member
from clipkit.data.sources.samples import caption_choices, collected, has_dots, image_endings, values_of_role
from clipkit.errors import DataError, one_line
from clipkit.files import cache_folder, replacing
from clipkit.opening import open_file
from clipkit.parsing import parse_json

ROLES = ("caption", "label", "negative_caption", "paraphrase", "group")
_LAYOUT = "5"  # version of the format of the stored index
_SCHEMA = pa.schema(
    {
        "image": pa.large_string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        **dict.fromkeys(ROLES, pa.large_list(pa.large_string())),
    }
)
_ENDINGS, _CAPTIONS = b"endings", b"captions"
_MANY_DOTTED = 0.01  # largest share of samples without an image because of a second dot in file names


def index_of(path: Path, given: Mapping[str, str]) -> pa.Table | DataError:
    """Return the index of a shard: name, offset and size of the image of each sample, and its texts by role.

    The files of a sample may be at any position in the shard. The index is stored on disk for the next call. If the
    shard is damaged, the DataError is returned, not raised.

    `given` maps a role to the file ending or JSON key that the user named for this role.
    """
    file = path.stat()
    state = f"{_LAYOUT} {file.st_size} {file.st_mtime_ns} {file.st_ctime_ns}".encode()
    name = f"{path.resolve()}{sorted(given.items()) if given else ''}"
    cached = cache_folder() / "shards" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.parquet"
    try:
        table = parquet.read_table(cached, page_checksum_verification=True)
        metadata = table.schema.metadata or {}
        if metadata.get(b"state") == state and table.schema == _SCHEMA and {_ENDINGS, _CAPTIONS} <= metadata.keys():
            return table
    except (OSError, pa.ArrowException):
        pass
    try:
        table = _scan(path, given)
        table = table.replace_schema_metadata({b"state": state, **table.schema.metadata})
    except DataError as error:
        return error
    # tarfile does not check headers, so that damaged headers cause errors of many kinds.
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        return DataError(
            f"{path}: is a damaged tar file ({reason}); download or create the file again, or leave it out"
        )
    with suppress(OSError):  # without a writable cache, reading is only slower
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as temporary:
            parquet.write_table(table, temporary, write_page_checksum=True)
    return table


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    check_member(member)
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()


def _scan(path: Path, given: Mapping[str, str]) -> pa.Table:
    rows: dict[str, list[Any]] = {name: [] for name in ("image", "offset", "size", *ROLES)}
    endings: Counter[str] = Counter()
    dotted: list[str] = []
    captions: list[str] = []
    _check_end(path)
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedMember) as tar:
        samples = collected(_members(path, tar))
        _check_rest(path, tar.offset)
        for key, members in samples:
            found = image_endings(members) if "image" not in given else [given["image"].lower()]
            endings.update({" ".join(found): 1} if found else {})
            dotted += [next(iter(members.values())).name] if not found and has_dots(members) else []
            image = members.get(found[0]) if found else None
            rows["image"].append(key if image is None else image.name)
            rows["offset"].append(-1 if image is None else image.offset_data)
            rows["size"].append(-1 if image is None else image.size)
            texts = {*TEXTS, *(given[role].lower() for role in ROLES if role in given)}
            contents = {ending: _content(tar, members[ending]) for ending in texts if ending in members}
            if len(rows["size"]) <= PEEKED and "caption" not in given:
                captions = list(dict.fromkeys([*captions, *caption_choices(f"{path}/{key}", contents)]))
            for role in ROLES:
                rows[role].append(values_of_role(f"{path}/{key}", contents, role, given.get(role)))
    if len(dotted) > _MANY_DOTTED * len(samples):
        example = Path(dotted[0]).name
        stem, _, ending = example.partition(".")
        raise DataError(
            f"{path}: {len(dotted):,} of its {len(samples):,} samples have no image, because their file names have a "
            f"second dot, e.g. {example}, and the name of a sample ends at the first dot ({stem!r}); rename the "
            f"files in the tar, or give '{path.name}?image={ending}' if each sample has a file with the ending "
            f"{ending!r}"
        )
    return pa.table(rows, _SCHEMA.with_metadata({_ENDINGS: json.dumps(endings), _CAPTIONS: json.dumps(captions)}))


def used_captions(tables: Iterable[pa.Table]) -> list[str]:
    """Return the file endings and JSON keys that contain captions in any of the shards. Readers use only the first."""
    return list(dict.fromkeys(name for table in tables for name in parse_json(table.schema.metadata[_CAPTIONS])))


def used_endings(tables: Iterable[pa.Table]) -> tuple[str, list[str]]:
    """Return the image ending that most samples use, and the ignored endings of other images in the samples."""
    counts: Counter[str] = Counter()
    for table in tables:
        counts.update(parse_json(table.schema.metadata[_ENDINGS]))
    used: Counter[str] = Counter()
    others: dict[str, None] = {}
    for names, count in counts.items():
        first, *rest = names.split(" ")
        used[first] += count
        others |= dict.fromkeys(rest)
    return (used.most_common(1)[0][0] if used else ""), list(others)


def _check_end(path: Path) -> None:
    """Raise an error if a tar file has no end marker.

    Without this check, `tarfile` accepts a tar file that is truncated between two files.
    """
    with open_file(path) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2 * tarfile.BLOCKSIZE))
        if any(file.read()):
            raise DataError(
                f"{path}: is not a tar file, or is truncated; download or create the file again, or leave it out"
            )


def _check_rest(path: Path, start: int) -> None:
    """Raise an error if a tar file contains data after byte `start`, at which `tarfile` stopped reading.

    `tarfile` stops at a damaged header without an error.
    """
    with open_file(path) as file:
        file.seek(start)
        while block := file.read(1 << 20):
            if any(block):
                raise DataError(
                    f"{path}: is a damaged tar file (no header at byte {start}, but more data follows); download "
                    "or create the file again, or leave it out"
                )


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    end = path.stat().st_size
    for member in tar:
        if member.size < 0:  # the next header would be before this one, so the loop would not end
            raise tarfile.ReadError(f"{member.name} has a size of {member.size} bytes")
        if member.offset_data + member.size > end:
            raise DataError(
                f"{path}: is truncated within {member.name}; download or create the file again, or leave it out"
            )
        if member.isfile():
            yield member.name, member
