"""Test whether a model is the one that made an index, by the features of a few fixed inputs.

The index stores these features. The same model is accepted in another layout or export, with other library versions,
and on another device. A fine-tuned copy is rejected.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.errors import DataError
from clipkit.search.nearest import unit_vectors

if TYPE_CHECKING:
    from clipkit.models import DualEncoder

PROBE_TEXTS = (
    "a photo of two dogs playing in the snow.",
    "A red BUS, street; 1,234 signs!",
    "ein Foto von Äpfeln 苹果",
)
_MOST = 2e-3
"""Largest 1 - cosine at which two models count as the same; between bfloat16 on a GPU and float32 it is smaller."""


def probe_images() -> list[Image.Image]:
    """Return two fixed test images of smooth random colors."""
    generator = np.random.default_rng(0)
    small = [generator.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(2)]
    return [Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC) for pixels in small]


def probes_of(model: "DualEncoder") -> dict[str, list[list[float]]]:
    """Encode fixed test images and texts, and return the features by side of the model, "image" and "text".

    A side that the model does not have is left out.
    """
    encode: dict[str, Any] = {
        "image": lambda: model.encode_image(probe_images()),
        "text": lambda: model.encode_text(list(PROBE_TEXTS)),
    }
    return {side: [[round(v, 5) for v in row] for row in encode[side]().tolist()] for side in model.sides}


def same_model(stored: Mapping[str, Sequence[Sequence[float]]], side: str, features: NDArray[np.float32]) -> bool:
    """Return whether features of the fixed test inputs agree with the features in the index.

    Args:
        stored: features in the index, by side.
        side: "image" or "text".
        features: (P, D) features from the current model.
    """
    expected = np.array(stored.get(side, ()), np.float32)
    if expected.shape != features.shape:
        return False
    cosines = (unit_vectors(expected) * unit_vectors(features)).sum(axis=1)
    return float(1 - cosines.min()) <= _MOST


def check_same_model(
    stored: Mapping[str, Sequence[Sequence[float]]], side: str, features: NDArray[np.float32], folder: str, model: str
) -> None:
    """Check that a model is the one that made the index, by its features of fixed test inputs.

    Args:
        stored, side, features: as for `same_model`.
        folder, model: folder of the index and name of the current model, for the error message.

    Raises:
        DataError: the index was made with another model.
    """
    if same_model(stored, side, features):
        return
    raise DataError(
        f"{folder}: was made with another model, because its {side} features differ from the features of {model}; "
        "use the model of the index, or run clipkit embed with another folder as --out"
    )
