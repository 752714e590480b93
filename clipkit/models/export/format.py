"""An export format: it writes a folder, and reads it back with the library that the folder is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.models.dual_encoder import DualEncoder

# Unit-length features of images and of captions.
Encoded = tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]


class Format(Protocol):
    """A layout that another library opens."""

    tolerance: float
    """Largest allowed difference of a value of a unit-length feature."""
    least_cosine: float | None
    """Smallest allowed mean cosine with the model's features, for lossy formats; None: only the tolerance counts."""

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        """Write the model into an empty folder. Return the known differences from the model.

        Raises:
            ModelError: the model cannot be exported to this format; names the reason.
        """

    def encode(self, folder: Path, images: Sequence[Image.Image], captions: Sequence[str]) -> Encoded:
        """Unit-length features of images and captions, computed and preprocessed by the other library alone."""

    def usage(self, folder: Path) -> str:
        """Lines of Python that open the folder."""


@dataclass(frozen=True)
class Proof:
    """Comparison of the other library's features with the model's, for the same images and captions."""

    images: int
    captions: int
    image_difference: float
    text_difference: float
    """Largest difference of a value of a unit-length feature."""
    image_cosine: float
    text_cosine: float
    """Mean cosine between the two libraries' features."""
    changed: int
    """Captions whose most similar image differs between the two libraries; 0 if there is a single tower."""
    usage: str
    notes: list[str]
    """Known differences from the model."""
