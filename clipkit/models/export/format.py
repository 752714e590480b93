"""Interface of export formats: a format writes a folder, and loads it with the other library for verification."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder

# Unit-length features of images and of captions.
Encoded = tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]


class Format(Protocol):
    """A folder layout that another library can load."""

    tolerance: float
    """Maximum difference of a value of a unit-length feature."""
    least_cosine: float | None
    """Minimum mean cosine with the model's features, for lossy formats; None: only the tolerance is checked."""

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        """Write the model into an empty folder. Return the known differences from the model.

        Raises:
            ModelError: the model cannot be exported to this format; names the reason.
        """

    def encode(self, folder: Path, images: Sequence[Image.Image], captions: Sequence[str]) -> Encoded:
        """Return unit-length features of images and captions, preprocessed and computed only by the other library."""

    def usage(self, folder: Path) -> str:
        """Return Python code that loads the folder."""


def check_installed(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Raises:
        ModelError: one of them is missing.
    """
    missing = [package for package in packages if util.find_spec(package.replace("-", "_")) is None]
    if missing:
        raise ModelError(
            f"{missing[0]} is required for this export but not installed; pip install clipkit-torch[{extra}]"
        )


@dataclass(frozen=True)
class Proof:
    """Comparison of the other library's features with the model's, for the same images and captions."""

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
