"""Tuning methods, which select the parameters of a tower that are trained.

To add a method, write a function with its name here, and add a row to `recipe.model.TUNE_METHODS`.
"""

from collections.abc import Callable

from clipkit.errors import ModelError
from clipkit.models.towers import Tower
from clipkit.recipe.model import parse_tune


def tune(tower: Tower, method: str) -> None:
    """Apply a tuning method to a tower. A new projection is always trained, because frozen it would be noise.

    Args:
        tower: changed in place.
        method: `model.image.tune` or `model.text.tune` of a recipe.

    Raises:
        ModelError: the tower has no projection to train, or fewer than N blocks.
    """
    name, count = parse_tune(method)
    method_of(name)(tower, count)


def full(tower: Tower, _count: int) -> None:
    """Train all parameters."""
    tower.set_trainable([*(name for block in tower.blocks for name in block), *tower.head_names], head=True)


def last(tower: Tower, count: int) -> None:
    """Train the last `count` blocks and the projection."""
    if count > len(tower.blocks):
        raise ModelError(
            f"tune: last:{count} is more than the {len(tower.blocks)} blocks of this tower; use a smaller number"
        )
    trained = tower.blocks[len(tower.blocks) - count :]
    tower.set_trainable([*(name for block in trained for name in block), *tower.head_names], head=True)


def head(tower: Tower, _count: int) -> None:
    """Train the projection only."""
    if not tower.has_head:
        raise ModelError(
            "a tower has tune: head, which trains its projection, but it has no projection; use last:1 or frozen"
        )
    tower.set_trainable(tower.head_names, head=True)


def frozen(tower: Tower, _count: int) -> None:
    """Freeze all parameters, except for a new projection."""
    tower.set_trainable([], head=tower.head_is_new)


def method_of(name: str) -> Callable[[Tower, int], None]:
    """Return the function that implements a row of `TUNE_METHODS`."""
    method: Callable[[Tower, int], None] = globals()[name.partition(":")[0]]
    return method
