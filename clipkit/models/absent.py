"""The tower that a model of one tower does not have: whoever asks it is told so."""

from pathlib import Path
from typing import Any, NoReturn

from PIL import Image
from torch import nn

from clipkit.errors import ModelError
from clipkit.models.preprocess import Inputs, Preprocess
from clipkit.models.towers import ImageTower, TextTower


def absent_image_tower() -> ImageTower:
    """In the place of an image tower."""
    return ImageTower(_Absent("image"), nn.Identity(), [], Preprocess(_no_image, None, (0, 0, 0), (1, 1, 1)))


def absent_text_tower() -> TextTower:
    """In the place of a text tower."""
    return TextTower(_Absent("text"), nn.Identity(), [], _NoTokenizer())


def is_absent(tower: nn.Module) -> bool:
    """Whether the model does not have this tower."""
    return isinstance(tower.trunk, _Absent)


def check_present(model_name: str, **towers: nn.Module) -> None:
    """See that these towers are there.

    Args:
        model_name: what the user called the model.
        towers: by side, `image` or `text`.

    Raises:
        ModelError: one is not.
    """
    for side, tower in towers.items():
        if is_absent(tower):
            _refuse(side, model_name)


def _refuse(side: str, model_name: str = "this model") -> NoReturn:
    made_of = {"image": "captions", "text": "images"}[side]
    raise ModelError(f"{model_name} has no {side} tower: it was made of {made_of} alone; take one that has both")


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

    def save(self, folder: Path) -> None:
        """There is nothing to write."""
