"""prepared.json and skipped.jsonl: what a folder of shards was made of, with what settings, and how far it is."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clipkit.data.pairs import Pairs
from clipkit.data.shards import Format, Shard
from clipkit.errors import OutputError, one_line
from clipkit.files import write_whole

_LAYOUT = 1  # of the shards and of this file


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides, with the source, every byte of the shards."""

    size: int
    """Short side in pixels."""
    quality: int
    """Of JPEG."""
    lossless: bool
    format: Format
    shard_size: int
    """Images of the source in a shard."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A stretch of `shard_size` images of the source that is finished."""

    name: str | None
    """The shard's file; None where every image of the stretch is broken, and there is no shard."""
    samples: int
    skipped: int
    source_bytes: int
    """Of the files that the samples were made from."""
    bytes: int = 0
    """Of the shard's file."""
    sha256: str = ""

    @property
    def shard(self) -> Shard:
        """What its file has to hold."""
        return Shard(self.samples, self.bytes, self.sha256)


@dataclass(frozen=True)
class Skipped:
    """An image that is left out."""

    image: int
    """Its position in the source, from 0."""
    name: str
    reason: str


@dataclass
class Manifest:
    """The state of a folder.

    Args:
        folder: it.
        source: name, fingerprint, and how many images and captions.
        settings: of the shards.
        done: the finished stretches, from the source's start, without a gap.
        skipped: by stretch, those of the finished ones that have any.
        complete: whether everything is there and was verified.
    """

    folder: Path
    source: dict[str, Any]
    settings: Settings
    done: list[Done] = field(default_factory=list)
    skipped: dict[int, list[Skipped]] = field(default_factory=dict)
    complete: bool = False

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return self.folder / "prepared.json"

    @property
    def skipped_file(self) -> Path:
        """Where the images that are left out are listed."""
        return self.folder / "skipped.jsonl"

    def write(self) -> None:
        """Keep it.

        Raises:
            OSError: the folder cannot be written to.
        """
        values = {
            "layout": _LAYOUT,
            "complete": self.complete,
            "source": self.source,
            "settings": asdict(self.settings),
            "shards": [asdict(own) for own in self.done],
        }
        write_whole(self.file, json.dumps(values, ensure_ascii=False, indent=1) + "\n")

    def write_skipped(self) -> None:
        """List what is left out, in the source's order."""
        lines = [_line(own) for stretch in sorted(self.skipped) for own in self.skipped[stretch]]
        if lines:
            write_whole(self.skipped_file, "".join(lines))
        else:
            self.skipped_file.unlink(missing_ok=True)

    def finish(self, stretch: int, done: Done, skipped: Sequence[Skipped]) -> None:
        """Note that a stretch is finished.

        Raises:
            OSError: the folder cannot be written to.
        """
        # First the list, whose lines do not count until the manifest says how many there are.
        if skipped:
            self.skipped[stretch] = list(skipped)
            with self.skipped_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(map(_line, skipped))
        else:
            self.skipped.pop(stretch, None)
        self.done[stretch : stretch + 1] = [done]
        self.write()

    def forget(self) -> None:
        """Remove it and the list."""
        self.skipped_file.unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)


def begin(pairs: Pairs, out: Path, settings: Settings) -> Manifest:
    """What is in the folder already; an empty manifest, written, where that is nothing.

    Raises:
        OutputError: it holds something else, or was begun with other pairs or settings.
    """
    if set("{}*?[]") & set(str(out)):
        raise OutputError(f"{out}: has signs in its name that patterns of shards are made of; give --out another name")
    source = {
        "name": pairs.name,
        "fingerprint": _fingerprint(pairs),
        "images": len(pairs.images),
        "captions": len(pairs.captions) if pairs.has_captions else 0,
    }
    manifest = read_manifest(out)
    if manifest is None:
        other = sorted(file.name for file in out.iterdir() if file.name != ".prepared.json.writing")
        if other:
            raise OutputError(f"{out}: is not empty (it has {other[0]}), and not from here; give --out another folder")
        manifest = Manifest(out, source, settings)
        manifest.write()
        return manifest
    if manifest.source["fingerprint"] != source["fingerprint"]:
        raise OutputError(
            f"{out}: was begun with other data ({manifest.source['name']}, or it has changed since); give --out "
            "another folder, or delete this one"
        )
    for name, own in asdict(settings).items():
        before = getattr(manifest.settings, name)
        if before != own:
            raise OutputError(
                f"{out}: was begun with {name} {before}, not {own}; give the same, or --out another folder"
            )
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder says of itself; None where it has no prepared.json.

    Raises:
        OutputError: it cannot be understood.
    """
    file = folder / "prepared.json"
    try:
        values = json.loads(file.read_bytes())
        if values["layout"] != _LAYOUT:
            raise ValueError(f"its layout is {values['layout']}, not {_LAYOUT}")
        settings = Settings(**_known(Settings, values["settings"]))
        done = [Done(**_known(Done, own)) for own in values["shards"]]
        source, complete = dict(values["source"]), bool(values["complete"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(
            f"{file}: cannot be read ({type(error).__name__}: {one_line(error)}); delete {folder}, or give --out "
            "another folder"
        ) from None
    manifest = Manifest(folder, source, settings, done, complete=complete)
    manifest.skipped = _read_skipped(manifest)
    return manifest


def _fingerprint(pairs: Pairs) -> str:
    """The pairs' own, and of the texts that go into the shards beside their captions."""
    digest = hashlib.sha256(pairs.fingerprint.encode())
    for texts in (pairs.negatives, pairs.paraphrases):
        if texts is not None:
            digest.update("\0".join(texts).encode())
        digest.update(b"\0\0")
    return digest.hexdigest()


def _known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {own.name: values[own.name] for own in fields(kind)}


def _read_skipped(manifest: Manifest) -> dict[int, list[Skipped]]:
    """The lines of finished stretches, the last ones of each: a stretch that was made again has older ones."""
    found: dict[int, dict[int, Skipped]] = {}
    try:
        lines = manifest.skipped_file.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            own = Skipped(**_known(Skipped, json.loads(line)))
            found.setdefault(own.image // manifest.settings.shard_size, {})[own.image] = own
        except (ValueError, LookupError, TypeError):
            continue  # cut short when the process was killed
    return {
        stretch: [skipped[place] for place in sorted(skipped)]
        for stretch, skipped in found.items()
        if stretch < len(manifest.done)
    }


def _line(skipped: Skipped) -> str:
    return json.dumps(asdict(skipped), ensure_ascii=False) + "\n"
