"""The base class of every part of a recipe, and a recipe's values by dotted key."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a recipe: read-only; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key.

    Example:
        >>> flat({"optim": {"lr": 1e-5}, "output": "run"})
        {'optim.lr': 1e-05, 'output': 'run'}
    """
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values
