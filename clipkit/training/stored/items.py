"""Images and captions for which a tower's outputs are stored."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.data import Pairs
from clipkit.data.sequences import evenly_spaced
from clipkit.embedding.hashes import content_hashes
from clipkit.images import ImageLike, Stored
from clipkit.processes import Processes

_SAMPLE = 1000  # number of captions from which the mean length is estimated


@dataclass(frozen=True)
class Items:
    """Images, or texts without duplicates, for which a tower's outputs are stored.

    Args:
        kind: `images` or `captions`.
        values: the images, or the distinct texts.
        key: hash that identifies the values and their order.
        data: name of the data, for listings of stores.
        row_of: (M,) position in `values` of each of the M original texts; None for images.
    """

    kind: Literal["images", "captions"]
    values: Sequence[Any]
    key: str
    data: str
    row_of: Int[Tensor, " M"] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def sample(self) -> list[Any]:
        """Return up to 1,000 evenly spaced items."""
        return [self.values[position] for position in evenly_spaced(len(self), _SAMPLE)]


def images_of(pairs: Pairs, processes: Processes) -> Items:
    """Return the images of a dataset.

    The key depends on the path, size and modification time of each image file, or on the content of images in memory.
    """
    share = pairs.images[processes.share(len(pairs.images))]
    states = (_state_of(image).encode(errors="surrogatepass") for image in share)
    digests = processes.gather_objects(b"".join(hashlib.sha256(state).digest() for state in states))
    return Items("images", pairs.images, hashlib.sha256(b"".join(digests)).hexdigest(), pairs.name)


def texts_of(texts: Sequence[str], name: str) -> Items:
    """Return the texts without duplicates; `name` is the name of the data for listings of stores."""
    position_of: dict[str, int] = {}
    row_of = torch.tensor([position_of.setdefault(text, len(position_of)) for text in texts])
    digest = hashlib.sha256()
    for text in position_of:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return Items("captions", list(position_of), digest.hexdigest(), name, row_of)


def _state_of(image: ImageLike) -> str:
    file = image if isinstance(image, Path) else getattr(image, "path", None)
    if isinstance(file, Path):
        try:
            state = file.stat()
        except (OSError, ValueError):
            return f"{image} is missing"
        return f"{file.absolute()} {image} {getattr(image, 'offset', 0)} {state.st_size} {state.st_mtime_ns}"
    if isinstance(image, Stored) and image.size < 0:
        return str(image)  # a remote image, identified by its URL
    return content_hashes([image])[0].hex()
