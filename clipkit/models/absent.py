"""Placeholders for towers that a model lacks or that were not loaded. They raise ModelError when called."""

from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from clipkit.errors import ModelError
from clipkit.models.preprocess import Preprocess
from clipkit.models.towers import ImageTower, TextTower


def absent_image_tower(left_out: bool = False) -> ImageTower:
    """Return a placeholder for an image tower.

    Args:
        left_out: True if the model has an image tower that was not loaded; False if it has none.
    """
    absent = _Absent("image", left_out)
    return ImageTower(absent, nn.Identity(), [], Preprocess(absent.refuse, None, (0, 0, 0), (1, 1, 1)))


def absent_text_tower(left_out: bool = False) -> TextTower:
    """Return a placeholder for a text tower.

    Args:
        left_out: True if the model has a text tower that was not loaded; False if it has none.
    """
    absent = _Absent("text", left_out)
    return TextTower(absent, nn.Identity(), [], _NoTokenizer(absent))


def is_absent(tower: nn.Module) -> bool:
    """Return whether the tower is a placeholder."""
    return isinstance(tower.trunk, _Absent)


def check_present(model_name: str, **towers: nn.Module) -> None:
    """Check that no tower is a placeholder.

    Args:
        model_name: the model's name as the user gave it.
        towers: the towers to check, by name: `image`, `text`.

    Raises:
        ModelError: a tower is a placeholder.
    """
    for tower in towers.values():
        if isinstance(tower.trunk, _Absent):
            tower.trunk.refuse(model_name=model_name)


class _Absent(nn.Module):
    def __init__(self, side: str, left_out: bool) -> None:
        super().__init__()
        self.side = side
        self.left_out = left_out

    def refuse(self, inputs: Any = None, model_name: str = "this model") -> NoReturn:
        """Raise ModelError for any inputs."""
        other, others = {"image": ("text", "captions"), "text": ("image", "images")}[self.side]
        if self.left_out:
            raise ModelError(
                f"{model_name}: was loaded with only={other!r}, so it encodes only {others}; load the model without "
                f"only={other!r}"
            )
        raise ModelError(
            f"{model_name}: has no {self.side} tower, so it encodes only {others}; use a model with an image tower and "
            "a text tower"
        )

    def forward(self, **inputs: Any) -> NoReturn:
        self.refuse()


class _NoTokenizer:
    context_length = 0
    vocab_size = 0
    pad_id = 0
    source = None

    def __init__(self, absent: _Absent) -> None:
        self.absent = absent

    def __call__(self, texts: list[str]) -> NoReturn:
        self.absent.refuse()

    def count(self, texts: list[str]) -> NoReturn:
        self.absent.refuse()

    def save(self, folder: Path) -> None:
        """Write nothing, because there is no tokenizer."""
