"""Changes to a recipe: `key.sub=value`."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.errors import RecipeError
from clipkit.parsing import parse_yaml


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `["optim.lr=1e-5", "data.validation=null"]` as a dict; values are YAML."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not an override; write key.sub=value, e.g. optim.lr=1e-5")
        try:
            changes[key] = parse_yaml(value)
        except ValueError:
            changes[key] = value
    return changes


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with changes such as `{"key.sub": value}` applied."""
    result = dict(values)
    for dotted, value in changes.items():
        section, dot, rest = dotted.partition(".")
        if dot:
            old = result.get(section)
            if old is not None and not isinstance(old, Mapping):
                raise RecipeError(f"{dotted}={value}: {section} is a single value without keys; set {section} itself")
            result[section] = merged(old or {}, {rest: value})
        else:
            result[section] = value
    return result
