"""Base class of all recipe sections, and flattening of nested values to dotted keys."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base class of recipe sections: read-only; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping: keys become dotted paths such as optim.lr.

    Example:
        >>> flat({"optim": {"lr": 1e-5}, "output": "run"})
        {'optim.lr': 1e-05, 'output': 'run'}
    """
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values
