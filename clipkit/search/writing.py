"""Write an index. Each image is encoded once, even with several processes or after an interruption."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from clipkit.data.output_folder import alone_in, as_output_errors
from clipkit.data.sources.columns import split_options
from clipkit.data.sources.streams import Stream, stream_of
from clipkit.embedding.hashes import content_hashes
from clipkit.embedding.shared import evaluating
from clipkit.errors import DataError, ModelError
from clipkit.files import write_whole
from clipkit.findings import Finding
from clipkit.images import Stored
from clipkit.models import DualEncoder, load
from clipkit.models.absent import check_present
from clipkit.models.devices import is_accelerator
from clipkit.models.encode import encode_images, tower_features
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.processes import Processes
from clipkit.search.assembly import Found, assemble, keys_of
from clipkit.search.folder import UNFINISHED, check_index_folder
from clipkit.search.layout import check_content, read_manifest
from clipkit.search.log import Encoded, EncodedLog, text_key
from clipkit.search.probes import check_same_model, probes_of
from clipkit.search.replacing import check_not_replaced
from clipkit.search.source import Images, read_images

# Number of items of a record in the log. An interruption loses at most one record of work in each process.
_RECORD = 64
_ACCELERATOR_RECORD = 4096
_HASHED = 4096


@dataclass(frozen=True)
class Embedded:
    """Result of `embed`: the complete index, and what was encoded, removed and skipped."""

    folder: Path
    images: int
    captions: int
    encoded_images: int
    """Number of images that this call encoded; all others were in the index or in the log of an interrupted call."""
    removed: int
    """Number of images that were removed from the index, because the source no longer has them."""
    skipped: list[dict[str, str]]
    """Unreadable images with reasons."""
    findings: Sequence[Finding]
    """Findings about parts of the source that were left out, and about assumptions of the reader."""
    manifest: dict[str, Any]


def embed(
    data: object,
    model: str | Path | DualEncoder,
    out: str | Path,
    *,
    batch_size: int | None = None,
    processes: Processes | None = None,
    progress: bool = False,
    qdrant: bool = False,
    dtype: str = "fp32",
) -> Embedded:
    """Encode the images and captions of a dataset, and write or update an index.

    Images are identified by the content of their files. If the index exists, only new images are encoded, and images
    that the source no longer has are removed. After an interruption, call `embed` again with the same arguments.

    Args:
        data: any source of images, with or without captions; also a stream.
        model: name of a model, or a model returned by `clipkit.load`.
        out: folder of the index: a new or empty folder, or an index made by the same model.
        batch_size: images per forward pass. None: chosen for the device.
        processes: group of processes that share the work. None: only this process.
        progress: show progress bars.
        qdrant: copy the features to the Qdrant server that the environment variable QDRANT_URL names.
        dtype: precision of the forward pass if `model` is a name: fp32, bf16, fp16 or auto, as for `clipkit.load`.

    Raises:
        DataError: the data cannot be read, the index was made by another model, or the Qdrant server does not answer.
        OutputError: the folder is not empty and not an index, or cannot be written.

    Example:
        >>> clipkit.embed("photos/", "openai/clip-vit-base-patch32", "photos.index")      # doctest: +SKIP
    """
    folder = Path(out)
    group = processes or Processes.alone()
    check_index_folder(folder)
    stream = stream_of(str(data)) if isinstance(data, str | Path) else None
    source = stream or read_images(data)  # invalid data are reported before the model is loaded
    encoder = load(model, dtype=dtype) if isinstance(model, str | Path) else model
    check_present(encoder.name, image=encoder.image)
    writer = _Writer(folder, encoder, batch_size, group, progress, _source_of(data))
    with as_output_errors(folder), writer.locked():
        writer.open()
        found = writer.stream(source) if isinstance(source, Stream) else writer.images(source)
        texts = [text for captions in found.captions for text in captions] if "text" in encoder.sides else []
        writer.texts(list(dict.fromkeys(texts)))
        return writer.finish(found, qdrant)


def _source_of(data: object) -> str | None:
    """Return the name of a source, with an absolute path if it is a file or folder.

    The result is None for a Python object.
    """
    if not isinstance(data, str | Path):
        return None
    name = split_options(str(data))[0]
    path = Path(name).expanduser()
    return str(data).replace(name, str(path.absolute()), 1) if path.exists() else str(data)


class _Writer:
    """Writer of an index: encodes images and captions to logs, and then writes the index."""

    def __init__(
        self,
        folder: Path,
        model: DualEncoder,
        batch_size: int | None,
        processes: Processes,
        progress: bool,
        source: str | None,
    ) -> None:
        self.folder, self.model, self.processes, self.source = folder, model, processes, source
        self.logs = folder / UNFINISHED
        self.batch_size = batch_size
        self.progress = progress and processes.is_main
        self.record = _ACCELERATOR_RECORD if is_accelerator(model.device) else _RECORD
        self.encoded = 0
        self.skipped: dict[int, str] = {}

    def locked(self) -> AbstractContextManager[None]:
        """Context in which no other command writes to the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return alone_in(self.folder) if self.processes.is_main else nullcontext()

    def open(self) -> None:
        """Read the existing index and the logs of an interrupted call, if there are any.

        Raises:
            DataError: another model made the index or the logs.
        """
        self.probes = probes_of(self.model)
        self.former = read_manifest(self.folder) if (self.folder / "manifest.json").is_file() else None
        if self.former is not None:
            for side, features in self.probes.items():
                if side in self.former["probes"]:
                    given = np.array(features, np.float32)
                    check_same_model(self.former["probes"], side, given, str(self.folder), self.model.name)
            self.processes.on_main(partial(check_content, self.folder, self.former))  # damage would be copied
        fingerprint = tower_fingerprint(self.model.image) + tower_fingerprint(self.model.text)
        mark = self.logs / "model.txt"

        def prepare() -> None:
            self.logs.mkdir(exist_ok=True)
            if not mark.is_file():
                write_whole(mark, fingerprint)
            elif mark.read_bytes() != fingerprint.encode():
                raise DataError(
                    f"{self.folder}: was begun with another model, library version or device; use the same "
                    "model, version and device as before, or give another folder with --out"
                )

        self.processes.on_main(prepare)
        self.done = {kind: Encoded(self.logs, kind) for kind in ("image", "text")}
        self.processes.gather_objects(None)  # all processes read the logs before one of them adds a log
        self.before = {
            "image": {} if self.former is None else self._keys_of("rows"),
            "text": {} if self.former is None or not self.former["captions"] else self._keys_of("texts"),
        }

    def _keys_of(self, kind: str) -> dict[bytes, int]:
        assert self.former is not None
        return {key: row for row, key in enumerate(keys_of(self.folder, self.former, kind))}

    def images(self, images: Images) -> Found:
        """Encode the readable images of a source.

        The result also lists the unreadable images with reasons.
        """
        share = self.processes.share(len(images.files))
        hashes: list[bytes | str] = []
        with self.processes.failing_together():
            hashes = list(_hashes(images.files[share], self.progress))
        every = [entry for part in self.processes.gather_objects(hashes) for entry in part]
        keys = [entry if isinstance(entry, bytes) else None for entry in every]
        broken: dict[int, str] = {row: entry for row, entry in enumerate(every) if isinstance(entry, str)}
        self._check_not_replaced([key for key in keys if key is not None], images.captions)
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key is not None and key not in self.before["image"]:
                first.setdefault(key, row)
        # Items are grouped into records before finished items are left out: the groups are the same after an
        # interruption.
        records = list(_parts(first.items(), self.record))
        mine = records[self.processes.index :: self.processes.count]
        bad: dict[bytes, str] = {}
        with self.processes.failing_together(), EncodedLog(self.logs, "image") as log:
            for record in self._bar(mine, "images", sum(map(len, records)) // self.processes.count):
                bad |= self._encode([(key, images.files[row]) for key, row in record], log)
        reasons = {key: why for part in self.processes.gather_objects(bad) for key, why in part.items()}
        broken |= {row: reasons[key] for row, key in enumerate(keys) if key in reasons}
        kept = [row for row in range(len(keys)) if row not in broken]
        return Found(
            [images.location(row) for row in kept],
            [key for row in kept if (key := keys[row]) is not None],
            kept,
            [images.captions[row] for row in kept],
            images.columns.take(np.array(kept, np.int64)) if images.columns.num_columns else None,
            [{"image": images.location(row), "reason": broken[row]} for row in sorted(broken)],
            images.findings,
        )

    def stream(self, stream: Stream) -> Found:
        """Encode the images of a stream part by part. Each process reads different parts."""
        parts = range(self.processes.index, len(stream.parts), self.processes.count)
        mine: list[tuple[int, list[tuple[str, bytes, list[str]]], list[tuple[str, str]]]] = []
        with self.processes.failing_together(), EncodedLog(self.logs, "image") as log:
            seen: set[bytes] = set()
            for part in self._bar([[number] for number in parts], "shards", len(parts)):
                rows: list[tuple[str, bytes, list[str]]] = []
                broken: list[tuple[str, str]] = []
                for samples in _parts(stream.samples(stream.parts[part[0]]), self.record):
                    keyed = [(hashlib.sha256(sample.image.content).digest(), sample) for sample in samples]
                    new = {key: s.image for key, s in keyed if key not in seen and key not in self.before["image"]}
                    bad = self._encode(list(new.items()), log)
                    seen |= new.keys() - bad.keys()
                    rows += [(s.image.location, key, s.captions) for key, s in keyed if key not in bad]
                    broken += [(s.image.location, bad[key]) for key, s in keyed if key in bad]
                mine.append((part[0], rows, broken))
        every = sorted(entry for part in self.processes.gather_objects(mine) for entry in part)
        rows = [row for _, part, _ in every for row in part]
        captions = [list(dict.fromkeys(text for text in texts if text)) for _, _, texts in rows]
        self._check_not_replaced([key for _, key, _ in rows], captions)
        skipped = [{"image": name, "reason": why} for _, _, part in every for name, why in part]
        return Found(
            [name for name, _, _ in rows], [key for _, key, _ in rows], [-1] * len(rows), captions, None, skipped
        )

    def _check_not_replaced(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> None:
        now = {"image": images, "text": {text_key(text) for texts in captions for text in texts}}
        check_not_replaced(self.folder, self.source, self.before, now, self.former)

    def texts(self, texts: Sequence[str]) -> None:
        """Encode distinct captions and add their features to the log. Captions in the index are skipped."""
        keyed = [(text_key(text), text) for text in texts]
        records = list(_parts((entry for entry in keyed if entry[0] not in self.before["text"]), 4 * self.record))
        mine = records[self.processes.index :: self.processes.count]
        with self.processes.failing_together(), EncodedLog(self.logs, "text") as log, evaluating(self.model):
            for record in self._bar(mine, "captions", sum(map(len, records)) // self.processes.count):
                new = [(key, text) for key, text in record if key not in self.done["text"]]
                if new:
                    features = self.model.encode_text([text for _, text in new])
                    log.add([key for key, _ in new], features.numpy())

    def _encode(self, items: Sequence[tuple[bytes, Path | Stored]], log: EncodedLog) -> dict[bytes, str]:
        """Encode images and add their features to a log. Images that already are in a log are skipped.

        Args:
            items: key (SHA-256) and file of each image.

        Returns:
            The reason for each unreadable image, by key.
        """
        new = [(key, image) for key, image in items if key not in self.done["image"]]
        if not new:
            return {}
        bad: dict[int, str] = {}
        tower = self.model.image
        with evaluating(self.model):
            raw = encode_images(
                tower, [image for _, image in new], tower_features, self.batch_size, self.model.device, bad=bad
            )
        rows = torch.nn.functional.normalize(raw, dim=-1)
        sound = [row for row in range(len(new)) if row not in bad]
        if not rows[sound].isfinite().all():
            raise ModelError(
                f"{self.model.name}: features of images are not finite, perhaps by overflow in half precision; use "
                "--dtype fp32"
            )
        if sound:
            log.add([new[row][0] for row in sound], rows[sound].numpy())
        self.encoded += len(sound)
        return {new[row][0]: why for row, why in bad.items()}

    def finish(self, found: Found, qdrant: bool) -> Embedded:
        """Write the files of the index, with features from the logs and from the existing index.

        Raises:
            DataError: no image can be read.
        """
        encoded = sum(self.processes.gather_objects(self.encoded))
        if not found.keys:
            why = f", the first because: {found.skipped[0]['reason']}" if found.skipped else ""
            raise DataError(f"none of the images can be read{why}; check the paths and files of the images")
        manifest: dict[str, Any] = {}

        def write() -> None:
            manifest.update(assemble(self.folder, self.model, found, self.former, self.probes, self.source, qdrant))
            shutil.rmtree(self.logs)

        self.processes.on_main(write)
        gone = len(self.before["image"].keys() - set(found.keys))
        texts = sum(map(len, found.captions))
        return Embedded(self.folder, len(found.keys), texts, encoded, gone, found.skipped, found.findings, manifest)

    def _bar(self, records: Sequence[Any], what: str, total: int) -> Iterator[Any]:
        bar = tqdm(total=total, desc=what, unit="", disable=None if self.progress else True, leave=False)
        with bar:
            for record in records:
                yield record
                bar.update(len(record))


def _hashes(images: Sequence[Path | Stored], progress: bool) -> Iterator[bytes | str]:
    """Yield the SHA-256 of each file, or the reason why it cannot be read."""
    with tqdm(total=len(images), desc="reading", unit="", disable=None if progress else True, leave=False) as bar:
        for start in range(0, len(images), _HASHED):
            part = images[start : start + _HASHED]
            try:
                yield from content_hashes(part)
            except DataError:
                yield from map(_hash_or_reason, part)
            bar.update(len(part))


def _hash_or_reason(image: Path | Stored) -> bytes | str:
    try:
        return content_hashes([image])[0]
    except DataError as error:
        return str(error)


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
