"""Features of a data set: each image and each string once, whoever asks, on one process or several."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.embedding.cache import FeatureCache
from clipkit.errors import DataError, ModelError, OutputError, UserError, one_line
from clipkit.files import cache_folder
from clipkit.images import ImageLike, open_image
from clipkit.models import DualEncoder
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.models.towers import ImageTower, TextTower

if TYPE_CHECKING:
    from clipkit.processes import Processes

# Computed and kept at once: what an interruption loses.
_CHUNK = 8192

T = TypeVar("T")

_logger = logging.getLogger(__name__)

# A folder; None: the user's cache folder; False: none.
Cache = str | Path | Literal[False] | None


class Features:
    """Features of one model's images and texts.

    What was computed before is taken from the cache: it is found by the weights, by how inputs are made, and by the
    content of files and strings, so a changed file or model is noticed, and all tasks and data sets share.

    Args:
        model: what `clipkit.load` gives.
        batch_size: images in one forward.
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
        self.folder = None if cache is False else cache_folder() if cache is None else _writable(Path(cache))
        self.progress = progress and (processes is None or processes.is_main)
        self.computed = 0
        self.from_cache = 0
        self._started = time.time_ns()

    def images(self, images: Sequence[ImageLike], hashes: list[bytes] | None = None) -> Float[Tensor, "N D"]:
        """Unit-length features of images, float32 on the CPU.

        Args:
            images: paths, PIL images or arrays.
            hashes: of their contents, where `content_hashes` has read them already.

        Raises:
            DataError: an image is missing or cannot be decoded.
            ModelError: a feature is not finite.
        """

        def encode(own: list[ImageLike]) -> Tensor:
            return self.model.encode_image(own, self.batch_size, progress=self.progress)

        return self._all(images, hashes or self.content_hashes(images), encode, self.model.image)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Unit-length features of strings, float32 on the CPU."""
        keys = [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]

        def encode(own: list[str]) -> Tensor:
            return self.model.encode_text(own, progress=self.progress)

        return self._all(texts, keys, encode, self.model.text)

    def content_hashes(self, images: Sequence[ImageLike]) -> list[bytes]:
        """SHA-256 of each image's content; of a path that of the file."""
        if self.processes is None or self.processes.count == 1:
            return content_hashes(images)
        own: list[bytes] = []
        with self._agreed():
            own = content_hashes(images[self.processes.share(len(images))])
        rows = torch.from_numpy(np.frombuffer(b"".join(own), dtype=np.uint8).reshape(len(own), 32).copy())
        together = self.processes.gather(rows.to(self.processes.device), len(images)).cpu().numpy()
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
        missing = (~known).nonzero()[:, 0]
        features = stored.new_empty(len(unique), stored.shape[1])
        features[known] = stored
        for chunk in missing.split(_CHUNK) if len(missing) else ():
            own = [unique[row] for row in chunk.tolist()]
            rows = self._shared([item_of[key] for key in own], encode)
            if features.shape[1] != rows.shape[1]:  # nothing was known, so neither was the width
                features = rows.new_empty(len(unique), rows.shape[1])
            features[chunk] = rows
            broken = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
            if broken:
                raise ModelError(
                    f"{self.model.name}: its features of {str(item_of[own[broken[0]]])[:80]!r} are not finite "
                    f"({len(broken)} of {len(own)} alike); a model in half precision may overflow: load it in float32"
                )
            if cache is not None and (self.processes is None or self.processes.is_main):
                self._keep(cache, own, rows, [item_of[key] for key in own])
        if len(unique) == len(keys):
            return features
        return features[[place[key] for key in keys]]

    def _keep(self, cache: FeatureCache, keys: list[bytes], rows: Tensor, items: Sequence[Any]) -> None:
        # A file that was changed since its content was hashed would give another content's features.
        same = [row for row, item in enumerate(items) if not _changed_since(item, self._started)]
        try:
            if same:
                cache.add([keys[row] for row in same], rows[same])
        except OSError as error:
            # What was computed is of use all the same.
            _logger.warning(
                "%s: features cannot be kept there (%s), the next task computes them again", cache.folder, error
            )

    def _known(self, cache: FeatureCache | None, keys: list[bytes]) -> tuple[Tensor, Tensor]:
        """What the first process finds in its cache, on all of them."""
        found, stored = torch.zeros(len(keys), dtype=torch.bool), torch.empty(0, 0)
        if cache is not None and (self.processes is None or self.processes.is_main):
            found, stored = cache.read(keys)
        if self.processes is None or self.processes.count == 1:
            return found, stored
        found = self.processes.rows_of_main(found.to(torch.uint8)).bool()
        width = self.processes.of_main(stored.shape[1])
        if not self.processes.is_main:
            stored = torch.empty(int(found.sum()), width)
        return found, self.processes.rows_of_main(stored) if len(stored) else stored

    def _shared(self, items: list[T], encode: Callable[[list[T]], Tensor]) -> Tensor:
        """Features of all items, each computed by one process, with the model in evaluation mode."""
        share = items if self.processes is None else items[self.processes.share(len(items))]
        rows = torch.empty(0, 0)
        learning = [module for module in self.model.modules() if module.training]
        self.model.eval()
        with self._agreed():
            if share:
                rows = encode(share)
        for module in learning:
            module.training = True
        if self.processes is None or self.processes.count == 1:
            return rows
        width = self.processes.largest(rows.shape[1])
        rows = rows if share else torch.empty(0, width)
        return self.processes.gather(rows.to(self.processes.device), len(items)).cpu()

    @contextmanager
    def _agreed(self) -> Iterator[None]:
        """Around what each process does by itself: what one finds wrong, all of them raise."""
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        if self.processes is not None:
            self.processes.raise_together(failure)
        elif failure is not None:
            raise failure


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: features cannot be kept there ({error.strerror}); give another folder") from None
    return folder


def content_hashes(images: Sequence[ImageLike]) -> list[bytes]:
    """SHA-256 of each file's bytes, or of an image in memory.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        # Not all at once: each waiting task weighs more than its hash.
        parts = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
        return [own for part in parts for own in pool.map(_content_hash, part)]


def _content_hash(image: ImageLike) -> bytes:
    if isinstance(image, Image.Image | np.ndarray):
        seen = open_image(image)  # upright, with its palette's colours: what a tower gets
        return hashlib.sha256(f"{seen.size} ".encode() + seen.tobytes()).digest()
    try:
        return hashlib.sha256((Path(image) if isinstance(image, str) else image).read_bytes()).digest()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        said = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{image}: cannot be read ({said}); check the path") from None


def _changed_since(item: object, started: int) -> bool:
    """Whether an image's file was written or replaced after that time in nanoseconds."""
    if not isinstance(item, Path):
        return False
    try:
        return item.stat().st_ctime_ns >= started
    except OSError:
        return True
