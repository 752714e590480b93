"""Features of images and strings, encoded once on one or several processes, and cached for all evaluation tasks."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.embedding.bars import Bars
from clipkit.embedding.cache import FeatureCache
from clipkit.embedding.hashes import content_hashes
from clipkit.embedding.shared import encode_shared, evaluating
from clipkit.errors import ModelError, OutputError
from clipkit.files import cache_folder
from clipkit.images import ImageLike
from clipkit.models import DualEncoder
from clipkit.models.devices import is_accelerator
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.models.towers import ImageTower, TextTower
from clipkit.processes import Processes

# Number of items that are encoded before they are written to the cache; an interruption loses at most these items.
# The strings of such a chunk are sorted by length, to reduce padding. Smaller chunks would need more padding.
_STRINGS = 8192
_ACCELERATOR_CHUNK = 65_536

# On a CPU, images are written to the cache every few seconds, in chunks of several full batches.
_FIRST_IMAGES = 64
_SECONDS = 10

T = TypeVar("T")

_logger = logging.getLogger(__name__)

# Location of the cache: a folder; None: the user's cache folder; False: no cache.
Cache = str | Path | Literal[False] | None


class Features:
    """Features of images and texts by one model, computed once and cached.

    A cached feature is identified by the weights and preprocessing of the model, and by the content of the file or
    string. Changed files and models are therefore encoded again, and all tasks and datasets use the same cache.

    Args:
        model: returned by `clipkit.load`.
        batch_size: images per forward pass; None: chosen for the device.
        cache: a folder; None: `$CLIPKIT_CACHE` or `~/.cache/clipkit`; False: no cache.
        processes: processes that encode equal parts of the data and return all features; None: only this process.
        progress: whether to show progress bars, or an object that creates the progress bars.
        normalize: whether to L2-normalize the features. Unnormalized features have their own cache folders.

    Raises:
        OutputError: the folder cannot be created.
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        batch_size: int | None = None,
        cache: Cache = None,
        processes: Processes | None = None,
        progress: bool | Bars = False,
        normalize: bool = True,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.processes = processes or Processes.alone()
        self.folder = None if cache is False else cache_folder() if cache is None else _created(Path(cache))
        self._bars = progress if isinstance(progress, Bars) else Bars(progress and self.processes.is_main)
        self.progress = self._bars.shown
        self.normalize = normalize
        self.computed = 0
        self.from_cache = 0
        self._started = time.time_ns()
        self._clock = time.perf_counter()

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of features that were computed (`computed`) and read from the cache (`from_cache`)."""
        return {"computed": self.computed, "from_cache": self.from_cache}

    @property
    def seconds(self) -> float:
        """Seconds since this object was created."""
        return time.perf_counter() - self._clock

    def images(self, images: Sequence[ImageLike], hashes: list[bytes] | None = None) -> Float[Tensor, "N D"]:
        """Return the features of images as float32 on the CPU, L2-normalized unless `normalize` is False.

        Args:
            images: paths, PIL images or arrays.
            hashes: result of `content_hashes` for these images, if already computed.

        Raises:
            DataError: an image is missing or cannot be decoded.
            ModelError: a feature is not finite.
        """
        encode = partial(self.model.encode_image, batch_size=self.batch_size, normalize=self.normalize)
        return self._features("images", images, hashes or self.content_hashes(images), encode, self.model.image)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Return the features of strings as float32 on the CPU, L2-normalized unless `normalize` is False.

        Raises:
            ModelError: a feature is not finite.
        """
        encode = partial(self.model.encode_text, normalize=self.normalize)
        return self._features("captions", texts, string_hashes(texts), encode, self.model.text)

    def missing(self, tower: ImageTower | TextTower, keys: Sequence[bytes]) -> list[int]:
        """Return the positions of the keys whose features are not cached.

        If a key occurs several times, only its first position is returned. All processes return the same result.

        Args:
            tower: tower that computes the features.
            keys: hashes of images or strings.
        """
        first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
        cache = self._cache_of(tower) if self.processes.is_main else None
        missing = sorted(position for key, position in first.items() if cache is None or not cache.has(key))
        return self.processes.gather_objects(missing)[0]

    def content_hashes(self, images: Sequence[ImageLike]) -> list[bytes]:
        """Return the SHA-256 hash of each image: of the file's bytes, or of the pixels of an image in memory.

        Each process computes a part of the hashes, and all processes return all hashes.
        """
        hashes: list[bytes] = []
        with self.processes.failing_together():
            hashes = content_hashes(images[self.processes.share(len(images))])
        return [digest for part in self.processes.gather_objects(hashes) for digest in part]

    def _cache_of(self, tower: ImageTower | TextTower) -> FeatureCache | None:
        if self.folder is None:
            return None
        return FeatureCache(self.folder / (tower_fingerprint(tower) + ("" if self.normalize else "-unnormalized")))

    def _features(
        self,
        kind: Literal["images", "captions"],
        items: Sequence[T],
        keys: list[bytes],
        encode: Callable[..., Tensor],
        tower: ImageTower | TextTower,
    ) -> Tensor:
        unique = list(dict.fromkeys(keys))
        row_of_key = {key: row for row, key in enumerate(unique)}
        item_of_key = dict(zip(keys, items, strict=True))
        cache = self._cache_of(tower)
        known, stored = self._cached(cache, unique)
        self.from_cache += int(known.sum())
        self.computed += len(unique) - int(known.sum())
        missing = (~known).nonzero()[:, 0]
        features = stored.new_empty(len(unique), stored.shape[1])
        features[known] = stored
        pace = _Pace(kind, is_accelerator(self.model.device), self.batch_size, self.processes)
        start = 0
        with self._bars.start(kind, len(missing)) as bar:
            # All processes encode equal parts: the progress of this process is multiplied by their number.
            encode = partial(encode, progress=lambda count: bar.update(count * self.processes.count))
            while start < len(missing):
                chunk = missing[start : start + pace.size]
                start += len(chunk)
                chunk_keys = [unique[row] for row in chunk.tolist()]
                chunk_items = [item_of_key[key] for key in chunk_keys]
                with evaluating(self.model):
                    rows = encode_shared(chunk_items, encode, self.processes).cpu()
                if features.shape[1] != rows.shape[1]:  # nothing was cached, so the dimension is only known now
                    features = rows.new_empty(len(unique), rows.shape[1])
                features[chunk] = rows
                broken = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
                if broken:
                    raise ModelError(
                        f"{self.model.name}: the features of {str(chunk_items[broken[0]])[:80]!r} are not "
                        f"finite ({len(broken)} of {len(chunk)} items), perhaps because half precision overflows; "
                        "use --dtype fp32 (in Python: load the model with dtype float32)"
                    )
                if cache is not None and self.processes.is_main:
                    self._write(cache, chunk_keys, rows, chunk_items, start == len(missing))
                pace.measured(len(chunk))
        if len(unique) == len(keys):
            return features
        return features[[row_of_key[key] for key in keys]]

    def _write(self, cache: FeatureCache, keys: list[bytes], rows: Tensor, items: Sequence[Any], last: bool) -> None:
        # If a file changed after it was hashed, its features do not match its hash.
        unchanged = [row for row, item in enumerate(items) if not _changed_since(item, self._started)]
        try:
            if unchanged:
                cache.add([keys[row] for row in unchanged], rows[unchanged])
            if last:
                cache.join()
        except OSError as error:
            # The features are still used; only the cache lacks them.
            _logger.warning(
                "%s: features cannot be cached (%s), so the next task computes them again; check the free space and "
                "the permissions of the folder",
                cache.folder,
                error,
            )

    def _cached(self, cache: FeatureCache | None, keys: list[bytes]) -> tuple[Tensor, Tensor]:
        """Look up keys in the cache; return a mask of the cached keys, and their features.

        Only the main process reads the cache, and all processes return the same result.
        """
        known, stored = torch.zeros(len(keys), dtype=torch.bool), torch.empty(0, 0)
        if cache is not None and self.processes.is_main:
            known, stored = cache.read(keys)
        if self.processes.count == 1:
            return known, stored
        known = self.processes.rows_of_main(known.to(torch.uint8)).bool()
        width = self.processes.of_main(stored.shape[1])
        if not self.processes.is_main:
            stored = torch.empty(int(known.sum()), width)
        return known, self.processes.rows_of_main(stored) if len(stored) else stored


def _created(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be used as the folder for computed features ({error.strerror}); give another "
            "folder with --cache"
        ) from None
    return folder


def string_hashes(texts: Sequence[str]) -> list[bytes]:
    """Return the SHA-256 hash of each string."""
    return [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]


class _Pace:
    """Number of items to encode before the next write to the cache, chosen from the measured speed.

    `kind` is images or captions, and `fast` is True for an accelerator. All processes use the same number.
    """

    def __init__(self, kind: str, fast: bool, batch_size: int | None, processes: Processes) -> None:
        self.adapts = kind == "images" and not fast
        self.processes = processes
        # Every process gets several full batches.
        self.unit = min(batch_size or 1, 8) * _FIRST_IMAGES * processes.count
        self.size = self.unit if self.adapts else _ACCELERATOR_CHUNK if fast else _STRINGS
        self._clock = time.perf_counter()

    def measured(self, count: int) -> None:
        """Choose the number of items before the next write, from the time that the last `count` items took."""
        if self.adapts:
            units = count * _SECONDS / (time.perf_counter() - self._clock) / self.unit
            self.size = self.processes.of_main(self.unit * max(1, int(units)))
            self._clock = time.perf_counter()


def _changed_since(item: object, started: int) -> bool:
    """Return whether an image file changed after `started`, in nanoseconds since 1970."""
    if not isinstance(item, Path):
        return False
    try:
        return item.stat().st_ctime_ns >= started
    except OSError:
        return True
