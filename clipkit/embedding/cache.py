"""Cache of features on disk; the key is a hash of the image or string."""

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY_BYTES = 32  # length of a SHA-256


class FeatureCache:
    """Cache of feature rows by key, in files that are written once and never changed.

    Args:
        folder: folder of one tower; created with the first features.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[bytes, tuple[Path, int]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._index(file)

    def _index(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                keys = opened.get_tensor("keys")
        except (SafetensorError, OSError, ValueError):
            return  # damaged: its features are computed again
        table = keys.numpy().tobytes()
        for row in range(len(keys)):
            self._rows[table[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (file, row)

    def read(self, keys: Sequence[bytes]) -> tuple[Bool[Tensor, " K"], Float[Tensor, "F D"]]:
        """Return a mask of the cached keys, and the features of these keys in order."""
        known = torch.zeros(len(keys), dtype=torch.bool)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            if key in self._rows:
                file, row = self._rows[key]
                by_file.setdefault(file, []).append((position, row))
        features = torch.empty(len(keys), 0)
        for file, entries in by_file.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    stored = opened.get_tensor("features")
            except (SafetensorError, OSError):
                continue  # deleted since it was indexed
            if not features.shape[1]:
                features = stored.new_empty(len(keys), stored.shape[1])
            positions, rows = torch.tensor(entries).T
            features[positions] = stored[rows]
            known[positions] = True
        return known, features[known]

    def add(self, keys: Sequence[bytes], features: Float[Tensor, "K D"]) -> None:
        """Write features and their keys to a new file.

        Raises:
            OSError: the folder cannot be written to.
        """
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), _KEY_BYTES)
        file = self.folder / f"{uuid4().hex}.safetensors"
        unfinished = file.with_suffix(".tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"keys": table, "features": features.contiguous()}, unfinished)
            unfinished.replace(file)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from None
        finally:
            unfinished.unlink(missing_ok=True)
        self._index(file)
