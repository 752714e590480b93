"""Changes to a recipe: `key.sub=value`."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from clipkit.errors import RecipeError


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=1e-5", "data.validation=null"]` as a dict; values are read as YAML."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not an override: write key.sub=value, as optim.lr=1e-5")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            changes[key] = value
    return changes


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `{"key.sub": value}` put in."""
    result = dict(values)
    for dotted, value in changes.items():
        section, dot, rest = dotted.partition(".")
        if dot:
            below = result.get(section)
            if below is not None and not isinstance(below, Mapping):
                raise RecipeError(f"{dotted}={value}: {section} is a single value, not a section")
            result[section] = merged(below or {}, {rest: value})
        else:
            result[section] = value
    return result
