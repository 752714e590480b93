"""A single tower of a dual encoder, without the other one: it loads faster and needs less memory."""

from pathlib import Path
from typing import Any, NoReturn, get_args

from clipkit.errors import ModelError
from clipkit.models.absent import absent_image_tower, absent_text_tower, check_present
from clipkit.models.dual_encoder import Backend, DualEncoder
from clipkit.recipe import Side


class OneTower:
    """Backend of a model of which one tower was loaded; such a model encodes, but is not saved.

    Args:
        whole: backend of the whole model.
        side: tower that was loaded.
    """

    def __init__(self, whole: Backend, side: Side) -> None:
        self.library = whole.library
        self.class_name = whole.class_name
        self.side = side

    def save(self, model: DualEncoder, folder: Path) -> NoReturn:
        """Raise ModelError: the folder would lack a tower."""
        self.refuse(model.name)

    def refuse(self, name: str) -> NoReturn:
        raise ModelError(f"{name}: only its {self.side} tower was loaded; load it without only={self.side!r}")


def check_whole(model: DualEncoder) -> None:
    """Check that no tower of a model was left out, so that it can be trained, saved and exported.

    Raises:
        ModelError: only one tower was loaded.
    """
    if isinstance(model.backend, OneTower):
        model.backend.refuse(model.name)


def check_side(only: Any) -> None:
    """Check the name of a tower.

    Raises:
        ModelError: it is neither image nor text.
    """
    if only is not None and only not in get_args(Side):
        raise ModelError(f"only is {only!r}; give image or text, or leave out only to load both towers")


def keep_only(model: DualEncoder, side: Side) -> DualEncoder:
    """Remove the other tower from a model, and whatever else keeps its weights in memory.

    Args:
        model: the model; it is changed in place.
        side: tower to keep.

    Raises:
        ModelError: the model does not have this tower.
    """
    check_present(model.name, **{side: getattr(model, side)})
    if side == "text":
        model.image = absent_image_tower(left_out=True)
    else:
        model.text = absent_text_tower(left_out=True)
    model.backend = OneTower(model.backend, side)
    return model
