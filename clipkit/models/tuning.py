"""Tuning methods: functions that make some parameters of a tower trainable and freeze the others.

To add a method, write a function with its name here, and add a row to `recipe.model.TUNE_METHODS`.
"""

from collections.abc import Callable

from clipkit.errors import ModelError
from clipkit.models.adapters.attach import attach_adapters
from clipkit.models.towers import Tower
from clipkit.recipe import LoraRecipe
from clipkit.recipe.model import parse_tune

Method = Callable[[Tower, int, LoraRecipe], None]
"""Function that changes a tower, given the number N of the method (e.g. last:N) and the settings of adapters."""


def tune(tower: Tower, method: str, lora: LoraRecipe | None = None) -> None:
    """Apply a tuning method to a tower. A new projection is always trained, because its weights are random.

    Args:
        tower: the tower, which is changed in place.
        method: value of `model.image.tune` or `model.text.tune` in a recipe, e.g. `last:2`.
        lora: settings of the adapters for the methods `lora` and `dora`; None: the defaults.

    Raises:
        ModelError: the tower has no projection to train, no layers to adapt, or fewer than N blocks for `last:N`.
    """
    name, count = parse_tune(method)
    method_of(name)(tower, count, lora or LoraRecipe())


def full(tower: Tower, _count: int, _settings: LoraRecipe) -> None:
    """Make all parameters trainable."""
    tower.set_trainable([*(name for block in tower.blocks for name in block), *tower.head_names], head=True)


def last(tower: Tower, count: int, _settings: LoraRecipe) -> None:
    """Make only the last `count` blocks and the projection trainable."""
    if count > len(tower.blocks):
        raise ModelError(
            f"model.{tower.side}.tune: last:{count} is more than the {len(tower.blocks)} blocks of the {tower.side} "
            f"tower; use last:{len(tower.blocks)} or less"
        )
    trained = tower.blocks[len(tower.blocks) - count :]
    tower.set_trainable([*(name for block in trained for name in block), *tower.head_names], head=True)


def head(tower: Tower, _count: int, _settings: LoraRecipe) -> None:
    """Make only the projection trainable."""
    if not tower.has_head:
        raise ModelError(
            f"model.{tower.side}.tune is head, but the {tower.side} tower has no projection to train; use last:1 or "
            "frozen"
        )
    tower.set_trainable(tower.head_names, head=True)


def lora(tower: Tower, _count: int, settings: LoraRecipe) -> None:
    """Add low-rank adapters (LoRA) to linear layers; make only the adapters and a new projection trainable."""
    attach_adapters(tower, settings, with_magnitude=False)


def dora(tower: Tower, _count: int, settings: LoraRecipe) -> None:
    """Add DoRA adapters to linear layers; make only the adapters and a new projection trainable.

    A DoRA adapter is a low-rank adapter with trainable norms of the rows of the adapted weight.
    """
    attach_adapters(tower, settings, with_magnitude=True)


def frozen(tower: Tower, _count: int, _settings: LoraRecipe) -> None:
    """Freeze all parameters, except for a new projection."""
    tower.set_trainable([], head=tower.head_is_new)


def method_of(name: str) -> Method:
    """Return the function of a tuning method.

    Args:
        name: a key of `TUNE_METHODS`, e.g. `lora` or `last:N`.
    """
    method: Method = globals()[name.partition(":")[0]]
    return method
