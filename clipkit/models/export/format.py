"""Interface of export formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.publish.layout import Layout


class Format(Protocol):
    """A folder layout that another library can load."""

    tolerance: float
    """Maximum difference of a value of a unit-length feature."""
    least_cosine: float | None
    """Minimum mean cosine with the model's features, for lossy formats; None: only the tolerance is checked."""
    crop_offset: Literal["floor", "round"] | None
    """Rounding of the position of the library's center crops; None: the same as the model's."""

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        """Write the model into an empty folder, and return sentences about known differences from the model.

        Raises:
            ModelError: the model cannot be exported to this format.
        """

    def layout(self, model: DualEncoder, folder: Path) -> Layout:
        """Return the properties of the exported model that its README needs."""

    def usage(self, folder: Path) -> str:
        """Return Python code that loads the folder."""


@dataclass(frozen=True)
class Proof:
    """Result of verifying an export: differences between the features of both libraries."""

    images: int
    captions: int
    image_difference: float
    text_difference: float
    """Maximum difference of a value of a unit-length feature."""
    image_cosine: float
    text_cosine: float
    """Mean cosine between the two libraries' features."""
    changed: int
    """Number of captions whose most similar image differs between the two libraries; 0 if there is only one tower."""
    usage: str
    notes: list[str]
    """Known differences from the model."""
