"""Features on disk, by the content of what they are features of."""

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY_BYTES = 32  # of a SHA-256


class FeatureCache:
    """Rows by key in files that are written once and never changed.

    Args:
        folder: of one tower; made when the first features come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place: dict[bytes, tuple[Path, int]] = {}
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
            self._place[table[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (file, row)

    def read(self, keys: Sequence[bytes]) -> tuple[Bool[Tensor, " K"], Float[Tensor, "F D"]]:
        """Which of the keys are there, and the features of those, in order."""
        found = torch.zeros(len(keys), dtype=torch.bool)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for place, key in enumerate(keys):
            if key in self._place:
                file, row = self._place[key]
                by_file.setdefault(file, []).append((place, row))
        features = torch.empty(len(keys), 0)
        for file, places in by_file.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    stored = opened.get_tensor("features")
            except (SafetensorError, OSError):
                continue  # deleted since it was listed
            if not features.shape[1]:
                features = stored.new_empty(len(keys), stored.shape[1])
            to, rows = torch.tensor(places).T
            features[to] = stored[rows]
            found[to] = True
        return found, features[found]

    def add(self, keys: Sequence[bytes], features: Float[Tensor, "K D"]) -> None:
        """Keep these rows.

        Raises:
            OSError: the folder cannot be written to.
        """
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), _KEY_BYTES)
        file = self.folder / f"{uuid4().hex}.safetensors"
        aside = file.with_suffix(".tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"keys": table, "features": features.contiguous()}, aside)
            aside.replace(file)
        except SafetensorError as error:  # as the library calls a full disk
            raise OSError(str(error)) from None
        finally:
            aside.unlink(missing_ok=True)
        self._index(file)
