"""Overrides of recipe values, written `key.sub=value`."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from clipkit.errors import RecipeError


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse overrides such as `["optim.lr=1e-5", "data.validation=null"]` into a dict; values are YAML."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not an override; write key.sub=value, e.g. optim.lr=1e-5")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            changes[key] = value
    return changes


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the values with overrides such as `{"key.sub": value}` applied."""
    result = dict(values)
    for dotted, value in changes.items():
        section, dot, rest = dotted.partition(".")
        if dot:
            old = result.get(section)
            if old is not None and not isinstance(old, Mapping):
                raise RecipeError(
                    f"{dotted}={value}: {section} is a single value and has no keys; set {section} directly"
                )
            result[section] = merged(old or {}, {rest: value})
        else:
            result[section] = value
    return result
