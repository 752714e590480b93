"""Models of which only one tower is loaded, which is faster and needs less memory."""

from pathlib import Path
from typing import Any, NoReturn, get_args

from clipkit.errors import ModelError
from clipkit.models.absent import absent_image_tower, absent_text_tower, check_present
from clipkit.models.dual_encoder import Backend, DualEncoder
from clipkit.recipe import Side


class OneTower:
    """Backend of a model of which only one tower was loaded. The model can encode, but cannot be saved.

    Args:
        whole: backend of the whole model.
        side: tower that was loaded.
    """

    def __init__(self, whole: Backend, side: Side) -> None:
        self.library = whole.library
        self.class_name = whole.class_name
        self.side = side

    def save(self, model: DualEncoder, folder: Path) -> NoReturn:
        """Raise ModelError, because the folder would lack a tower."""
        self.refuse(model.name)

    def refuse(self, name: str) -> NoReturn:
        raise ModelError(f"{name}: only its {self.side} tower was loaded; load the model without only={self.side!r}")


def check_whole(model: DualEncoder) -> None:
    """Check that all towers of a model were loaded, as training, saving and export require.

    Raises:
        ModelError: only one tower was loaded.
    """
    if isinstance(model.backend, OneTower):
        model.backend.refuse(model.name)


def check_side(only: Any) -> None:
    """Raise ModelError unless the name of a tower is `image`, `text` or None."""
    if only is not None and only not in get_args(Side):
        raise ModelError(
            f"only={only!r} is not a tower; use only='image' or only='text', or omit it to load both towers"
        )


def keep_only(model: DualEncoder, side: Side) -> DualEncoder:
    """Keep only one tower of a model, in place, to free the memory of the other tower.

    Args:
        model: the model.
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
