"""Manifest of a folder that `clipkit data prepare` writes.

prepared.json contains the source, the settings and the finished shards; skipped.jsonl lists the skipped images.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipkit.data.content_hash import content_hash
from clipkit.data.pairs import Pairs
from clipkit.data.shards import Format, sha256_of
from clipkit.errors import OutputError, one_line
from clipkit.files import write_whole
from clipkit.parsing import parse_json

_MANIFEST, _SKIPPED = "prepared.json", "skipped.jsonl"
_LAYOUT = 2  # version of the format of the shards and of these files


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `clipkit data prepare`. Together with the source, they determine every byte of the shards."""

    size: int
    """Short side in pixels."""
    quality: int
    """JPEG quality."""
    lossless: bool
    format: Format
    shard_size: int
    """Images per shard, including unreadable images, which are skipped."""


@dataclass(frozen=True)
class Skipped:
    """An image that was skipped because it is missing or broken."""

    image: int
    """Position in the source, counted from 0."""
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """At most `shard_size` consecutive images of the source, and the finished shard that contains them."""

    name: str | None
    """File name of the shard; None if every image of the block was skipped."""
    samples: int
    source_bytes: int
    """Total size of the samples' source files."""
    bytes: int
    """Size of the shard."""
    sha256: str
    skipped: list[Skipped]


@dataclass
class Manifest:
    """Contents of prepared.json: the source, the settings and the finished shards of a folder.

    Args:
        folder: folder of the shards.
        source: name, hashes, and numbers of images and captions of the source.
        settings: settings of the shards.
        shards: finished blocks, in the order of the source.
        complete: True if all blocks are finished.
        layout: version of the file format.
    """

    folder: Path
    source: dict[str, Any]
    settings: Settings
    shards: list[Block] = field(default_factory=list)
    complete: bool = False
    layout: int = _LAYOUT

    @property
    def files(self) -> list[Block]:
        """Finished blocks that have a shard. A block has no shard if all its images were skipped."""
        return [block for block in self.shards if block.name is not None]

    @property
    def skipped(self) -> list[Skipped]:
        """All images that were skipped."""
        return [skipped for block in self.shards for skipped in block.skipped]

    def write(self) -> None:
        """Write prepared.json. If images were skipped, also write skipped.jsonl."""
        if self.skipped:
            lines = (json.dumps(asdict(skipped), ensure_ascii=False) + "\n" for skipped in self.skipped)
            write_whole(self.folder / _SKIPPED, "".join(lines))
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_whole(self.folder / _MANIFEST, json.dumps(values, ensure_ascii=False, indent=1) + "\n")

    def check_shards(self) -> None:
        """Verify the hashes of the finished shards.

        Raises:
            OutputError: a shard is missing or damaged.
        """
        for block in self.files:
            path = self.folder / str(block.name)
            with suppress(OSError):
                if sha256_of(path) == block.sha256:
                    continue
            raise OutputError(
                f"{path}: is missing or damaged; delete the folder {self.folder} and prepare the data again"
            )

    def remove(self) -> None:
        """Delete prepared.json and skipped.jsonl, and the folder if it is then empty."""
        for name in (_SKIPPED, _MANIFEST):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def open_manifest(pairs: Pairs, folder: Path, settings: Settings) -> Manifest:
    """Read the manifest of a folder, or create a manifest if the folder is empty.

    Raises:
        OutputError: the folder contains other files, or was started with other data or settings.
    """
    if set("{}*?[]") & set(str(folder)):
        raise OutputError(
            f"{folder}: a folder of shards cannot have the characters {{}}*?[] in its name; give another "
            "folder with --out"
        )
    for name in (_MANIFEST, _SKIPPED):
        for unfinished in folder.glob(f".{name}.*.writing"):  # left by a process that was killed
            unfinished.unlink(missing_ok=True)
    source = {
        "name": pairs.name,
        "fingerprint": _fingerprint(pairs),
        "content": content_hash(pairs.images),
        "images": len(pairs.images),
        "captions": len(pairs.captions) if pairs.has_captions else 0,
    }
    manifest = read_manifest(folder)
    if manifest is None:
        names = sorted(file.name for file in folder.iterdir())
        if names:
            raise OutputError(
                f"{folder}: is not empty (it contains {names[0]}) and was not written by clipkit data "
                "prepare; give another folder with --out"
            )
        manifest = Manifest(folder, source, settings)
        manifest.write()
        return manifest
    # Folders of earlier versions have no hash of the content.
    if any(manifest.source.get(part, source[part]) != source[part] for part in ("fingerprint", "content")):
        raise OutputError(
            f"{folder}: contains shards of {manifest.source['name']}, but other data was given, or the data "
            "has changed since then; give another folder with --out, or delete this folder"
        )
    for name, value in asdict(settings).items():
        before = getattr(manifest.settings, name)
        if before != value:
            raise OutputError(
                f"{folder}: was started with {name} {before}, not {value}; set {name} to {before}, or give "
                "another folder with --out"
            )
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder. Return None if the folder has no prepared.json.

    Raises:
        OutputError: the manifest is invalid.
    """
    try:
        values = parse_json((folder / _MANIFEST).read_bytes())
        if values["layout"] != _LAYOUT:
            raise ValueError(f"layout {values['layout']}, not {_LAYOUT}")
        blocks = [
            Block(**block | {"skipped": [Skipped(**skipped) for skipped in block["skipped"]]})
            for block in values["shards"]
        ]
        settings, source = Settings(**values["settings"]), dict(values["source"])
        return Manifest(folder, **values | {"settings": settings, "source": source, "shards": blocks})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(
            f"{folder / 'prepared.json'}: is invalid ({type(error).__name__}: {one_line(error)}); delete the "
            f"folder {folder}, or give another folder with --out"
        ) from None


def _fingerprint(pairs: Pairs) -> str:
    """Return a hash of the images and all their texts, including negative captions and paraphrases."""
    digest = hashlib.sha256(pairs.fingerprint.encode())
    for texts in (pairs.negatives, pairs.paraphrases):
        if texts is not None:
            digest.update("\0".join(texts).encode())
        digest.update(b"\0\0")
    return digest.hexdigest()
