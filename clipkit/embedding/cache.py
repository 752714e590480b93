"""Cache of features on disk. The key of a feature vector is the hash of its image or string."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipkit.embedding.cached import hold
from clipkit.files import replacing

_KEY_BYTES = 32  # length of a SHA-256
_CHECKSUM = "sha256"

_logger = logging.getLogger(__name__)


class FeatureCache:
    """Cache of feature vectors by key, in files that are written once and never changed.

    Each file has a checksum of its keys and features. A damaged file is reported and removed, and never used.

    Args:
        folder: folder for the features of one tower; created when the first features are added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = hold(folder)
        """Lock that keeps `clipkit cache prune` from removing the folder; None if the folder does not exist yet."""
        self._rows: dict[bytes, tuple[Path, int]] = {}
        self._added: list[Path] = []
        for file in sorted(folder.glob("*.safetensors")):
            self._index(file)

    def _index(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                keys = opened.get_tensor("keys")
                is_table = keys.dtype == torch.uint8 and keys.shape[1:] == (_KEY_BYTES,)
        except FileNotFoundError:
            return  # another process has deleted it
        except (SafetensorError, OSError, ValueError):
            is_table = False
        if not is_table:
            self._drop(file)
            return
        table = keys.numpy().tobytes()
        for row in range(len(keys)):
            self._rows[table[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (file, row)

    def has(self, key: bytes) -> bool:
        """Return whether the cache contains the features of a key. The checksum is not verified."""
        return key in self._rows

    def read(self, keys: Sequence[bytes]) -> tuple[Bool[Tensor, " K"], Float[Tensor, "F D"]]:
        """Return the cached features of the given keys.

        Returns:
            Mask of the K keys, True for a cached key; and the features of the F cached keys, in the order of `keys`.
        """
        known = torch.zeros(len(keys), dtype=torch.bool)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            if key in self._rows:
                file, row = self._rows[key]
                by_file.setdefault(file, []).append((position, row))
        features = torch.empty(len(keys), 0)
        for file, entries in by_file.items():
            stored = self._verified(file)
            if stored is None or features.shape[1] not in (0, stored.shape[1]):
                continue
            if not features.shape[1]:
                features = stored.new_empty(len(keys), stored.shape[1])
            positions, rows = torch.tensor(entries).T
            features[positions] = stored[rows]
            known[positions] = True
        return known, features[known]

    def _verified(self, file: Path) -> Float[Tensor, "R D"] | None:
        """Return all R features in a file of the cache; None if the file is missing or its checksum is wrong."""
        try:
            with safe_open(file, framework="pt") as opened:
                keys, features = opened.get_tensor("keys"), opened.get_tensor("features")
                checksum = (opened.metadata() or {}).get(_CHECKSUM)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError):
            checksum = None
        if checksum is None or checksum != _checksum(keys, features):
            self._drop(file)
            return None
        return features

    def _drop(self, file: Path) -> None:
        _logger.warning("%s: cached features are damaged or have no checksum; they are computed again", file)
        with suppress(OSError):
            file.unlink()

    def add(self, keys: Sequence[bytes], features: Float[Tensor, "K D"]) -> None:
        """Write features and their keys to a new file of the cache.

        Raises:
            OSError: the folder cannot be written to.
        """
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), _KEY_BYTES)
        file = self.folder / f"{uuid4().hex}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"keys": table, "features": features.contiguous()}
        with replacing(file) as unfinished:
            save_file(tensors, unfinished, {_CHECKSUM: _checksum(**tensors)})
        self._held = self._held or hold(self.folder)
        self._index(file)
        self._added.append(file)

    def join(self) -> None:
        """Replace all files that this object has written by one file with the same features.

        Raises:
            OSError: the folder cannot be written to.
        """
        parts, self._added = self._added, []
        if len(parts) < 2:
            return
        keys = [key for key, (file, _) in self._rows.items() if file in parts]
        known, features = self.read(keys)
        self.add([key for key, is_known in zip(keys, known.tolist(), strict=True) if is_known], features)
        for part in parts:
            part.unlink(missing_ok=True)


def _checksum(keys: Tensor, features: Tensor) -> str:
    """Return the SHA-256 of keys and features, including their shapes, as hexadecimal text."""
    digest = hashlib.sha256(f"{keys.shape} {features.shape} {features.dtype}".encode())
    for tensor in (keys, features):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
