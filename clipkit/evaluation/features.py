"""Features of a data set: each picture and each string once, whoever asks, on one process or several."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.errors import DataError, ModelError, OutputError
from clipkit.evaluation.feature_cache import FeatureCache, default_folder
from clipkit.models import DualEncoder
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.models.towers import ImageTower, TextTower
from clipkit.pictures import Picture

if TYPE_CHECKING:
    from clipkit.processes import Processes

# Computed and kept at once: what an interruption loses.
_CHUNK = 8192

T = TypeVar("T")

_logger = logging.getLogger(__name__)

# A folder; None: the user's cache folder; False: none.
Cache = str | Path | Literal[False] | None


class Features:
    """Features of one model's pictures and texts.

    What was computed before is taken from the cache: it is found by the weights, by how inputs are made, and by the
    content of files and strings, so a changed file or model is noticed, and all tasks and data sets share.

    Args:
        model: what `clipkit.load` gives.
        batch_size: pictures in one forward.
        cache: a folder; None: `$CLIPKIT_CACHE` or `~/.cache/clipkit`; False: nothing is kept.
        processes: each computes its share; all get everything.
        progress: show bars on the terminal.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        batch_size: int = 64,
        cache: Cache = None,
        processes: "Processes | None" = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.processes = processes
        self.folder = None if cache is False else default_folder() if cache is None else _writable(Path(cache))
        self.progress = progress and (processes is None or processes.is_main)
        self.computed = 0
        self.from_cache = 0

    def images(self, pictures: Sequence[Picture], hashes: list[bytes] | None = None) -> Float[Tensor, "N D"]:
        """Unit-length features of pictures, float32 on the CPU.

        Args:
            pictures: paths, PIL images or arrays.
            hashes: of their contents, where `content_hashes` has read them already.

        Raises:
            DataError: a picture is missing or cannot be decoded.
            ModelError: a feature is not finite.
        """

        def encode(own: list[Picture]) -> Tensor:
            return self.model.encode_image(own, self.batch_size, progress=self.progress)

        return self._all(pictures, hashes or self.content_hashes(pictures), encode, self.model.image)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Unit-length features of strings, float32 on the CPU."""
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]

        def encode(own: list[str]) -> Tensor:
            return self.model.encode_text(own, progress=self.progress)

        return self._all(texts, keys, encode, self.model.text)

    def content_hashes(self, pictures: Sequence[Picture]) -> list[bytes]:
        """SHA-256 of each picture's content; of a path that of the file."""
        if self.processes is None or self.processes.count == 1:
            return content_hashes(pictures)
        own = content_hashes(pictures[self.processes.share(len(pictures))])
        rows = torch.frombuffer(bytearray(b"".join(own)), dtype=torch.uint8).view(len(own), -1)
        together = self.processes.gather(rows.to(self.processes.device), len(pictures)).cpu().numpy()
        return [row.tobytes() for row in together]

    def _all(
        self, items: Sequence[T], keys: list[bytes], encode: Callable[[list[T]], Tensor], tower: ImageTower | TextTower
    ) -> Tensor:
        place: dict[bytes, int] = {}
        for key in keys:
            place.setdefault(key, len(place))
        unique = list(place)
        item_of = dict(zip(keys, items, strict=True))
        cache = None if self.folder is None else FeatureCache(self.folder / tower_fingerprint(tower))
        known, stored = self._known(cache, unique)
        self.from_cache += int(known.sum())
        self.computed += len(unique) - int(known.sum())
        parts = []
        missing = (~known).nonzero()[:, 0].tolist()
        for start in range(0, len(missing), _CHUNK):
            chunk = [unique[row] for row in missing[start : start + _CHUNK]]
            rows = self._shared([item_of[key] for key in chunk], encode)
            broken = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
            if broken:
                raise ModelError(
                    f"{self.model.name}: its features of {str(item_of[chunk[broken[0]]])[:80]!r} are not finite "
                    f"({len(broken)} of {len(chunk)} alike); a model in half precision may overflow: load it in float32"
                )
            if cache is not None and (self.processes is None or self.processes.is_main):
                self._keep(cache, chunk, rows)
            parts.append(rows)
        new = torch.cat(parts) if parts else stored
        features = new.new_empty(len(unique), new.shape[1])
        features[known] = stored if len(stored) else features[known]
        if parts:
            features[~known] = new
        return features[[place[key] for key in keys]]

    def _keep(self, cache: FeatureCache, keys: list[bytes], rows: Tensor) -> None:
        try:
            cache.add(keys, rows)
        except OSError as error:
            # What was computed is of use all the same.
            _logger.warning(
                "%s: features cannot be kept there (%s), the next task computes them again", cache.folder, error
            )

    def _known(self, cache: FeatureCache | None, keys: list[bytes]) -> tuple[Tensor, Tensor]:
        """What the first process finds in its cache, on all of them."""
        nothing = torch.zeros(len(keys), dtype=torch.bool), torch.empty(0, 0)
        found, stored = nothing if cache is None else cache.read(keys)
        if self.processes is None or self.processes.count == 1:
            return found, stored
        found = self.processes.rows_of_main(found.to(torch.uint8)).bool()
        width = self.processes.of_main(stored.shape[1])
        if not self.processes.is_main:
            stored = torch.empty(int(found.sum()), width)
        return found, self.processes.rows_of_main(stored) if len(stored) else stored

    def _shared(self, items: list[T], encode: Callable[[list[T]], Tensor]) -> Tensor:
        if self.processes is None or self.processes.count == 1:
            return encode(items)
        share = items[self.processes.share(len(items))]
        rows = encode(share) if share else None
        width = self.processes.largest(0 if rows is None else rows.shape[1])
        rows = torch.empty(0, width) if rows is None else rows
        return self.processes.gather(rows.to(self.processes.device), len(items)).cpu()


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: features cannot be kept there ({error.strerror}); give another folder") from None
    return folder


def content_hashes(pictures: Sequence[Picture]) -> list[bytes]:
    """SHA-256 of each file's bytes, or of a picture in memory.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        return list(pool.map(_content_hash, pictures))


def _content_hash(picture: Picture) -> bytes:
    if isinstance(picture, Image.Image):
        return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).digest()
    if isinstance(picture, np.ndarray):
        head = f"{picture.dtype} {picture.shape} ".encode()
        return hashlib.sha256(head + np.ascontiguousarray(picture).tobytes()).digest()
    try:
        return hashlib.sha256(Path(picture).read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{picture}: cannot be read ({error.strerror}); check the path") from None
