"""What a way out is: it writes a folder, and opens it again by the library that it is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.models.dual_encoder import DualEncoder


class Format(Protocol):
    """A layout that another library opens."""

    tolerance: float
    """How far a value of a unit-length feature may be off there for it still to be the same model."""

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        """Write the model into an empty folder. Gives what is known not to be the same there.

        Raises:
            ModelError: it cannot be said in this layout; says what about it cannot.
        """

    def encode(
        self, folder: Path, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        """Unit-length features of images and captions, by the other library alone, its own preprocessing included."""

    def usage(self, folder: Path) -> str:
        """The lines of Python with which a user opens the folder."""


@dataclass(frozen=True)
class Proof:
    """What the other library made of the same images and captions."""

    images: int
    captions: int
    image_difference: float
    text_difference: float
    """Largest difference of a value of a unit-length feature."""
    image_cosine: float
    text_cosine: float
    """Mean cosine between a feature there and here."""
    changed: int
    """Captions whose most similar image is another one there; 0 where there is one tower."""
    usage: str
    notes: list[str]
    """What is known not to be the same there."""
