"""Placeholder for the missing tower of a model with a single tower; using it raises ModelError."""

from pathlib import Path
from typing import Any, NoReturn

from PIL import Image
from torch import nn

from clipkit.errors import ModelError
from clipkit.models.preprocess import Inputs, Preprocess
from clipkit.models.towers import ImageTower, TextTower


def absent_image_tower() -> ImageTower:
    """Return a placeholder for an image tower."""
    return ImageTower(_Absent("image"), nn.Identity(), [], Preprocess(_no_image, None, (0, 0, 0), (1, 1, 1)))


def absent_text_tower() -> TextTower:
    """Return a placeholder for a text tower."""
    return TextTower(_Absent("text"), nn.Identity(), [], _NoTokenizer())


def is_absent(tower: nn.Module) -> bool:
    """Return whether the tower is a placeholder."""
    return isinstance(tower.trunk, _Absent)


def check_present(model_name: str, **towers: nn.Module) -> None:
    """Raise an error if a tower is a placeholder.

    Args:
        model_name: the model's name as the user gave it.
        towers: towers by name: `image`, `text`.

    Raises:
        ModelError: a tower is a placeholder.
    """
    for side, tower in towers.items():
        if is_absent(tower):
            _refuse(side, model_name)


def _refuse(side: str, model_name: str = "this model") -> NoReturn:
    inputs = {"image": "captions", "text": "images"}[side]
    raise ModelError(
        f"{model_name}: has no {side} tower, so it encodes only {inputs}; use a model with an image tower and a "
        "text tower"
    )


def _no_image(image: Image.Image) -> Inputs:
    _refuse("image")


class _Absent(nn.Module):
    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def forward(self, **inputs: Any) -> NoReturn:
        _refuse(self.side)


class _NoTokenizer:
    context_length = 0
    vocab_size = 0
    pad_id = 0
    source = None

    def __call__(self, texts: list[str]) -> NoReturn:
        _refuse("text")

    def count(self, texts: list[str]) -> NoReturn:
        _refuse("text")

    def save(self, folder: Path) -> None:
        """Write nothing, because a missing text tower has no tokenizer."""
