"""Overrides of recipe values, written `key.sub=value`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit.errors import RecipeError
from clipkit.parsing import parse_yaml
from clipkit.recipe.section import Section, contains, kind_of_key


def parse_overrides(overrides: Sequence[str], recipe: type[Section] | None = None) -> dict[str, Any]:
    """Convert overrides such as `["optim.lr=1e-5", "data.validation=null"]` to a dict.

    Numbers, true, false, null, quoted strings, [lists] and {mappings} are read as YAML. Every other value is a string,
    e.g. `output=runs/a #2`.

    Args:
        overrides: strings KEY=VALUE.
        recipe: class of the recipe. If given, `output=007` stays a string, because the key accepts only strings.

    Raises:
        RecipeError: an override has no key or no `=`.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not an override; write key.sub=value, e.g. optim.lr=1e-5")
        changes[key] = _fitting(_value(value), value, None if recipe is None else kind_of_key(recipe, key))
    return changes


def _fitting(value: Any, typed: str, kind: Any) -> Any:
    """Return the parsed value if its type fits the recipe key, otherwise the string that the user typed.

    `kind` is the type annotation of the key; None: unknown key.
    """
    if isinstance(value, str) or kind is None or not contains(kind, str) or not typed.strip():
        return value
    if isinstance(value, list | dict):
        is_file = Path(typed).exists()
        accepted: tuple[Any, ...] = (list, tuple) if isinstance(value, list) else (dict, Mapping)
        return typed if is_file or not contains(kind, *accepted, Any) else value
    accepted = (int, float) if isinstance(value, int | float) and not isinstance(value, bool) else (type(value),)
    return value if contains(kind, *accepted, Any) else typed


def _value(typed: str) -> Any:
    try:
        value = parse_yaml(typed)
    except ValueError:
        return typed
    text = typed.strip()
    if isinstance(value, str):
        # A string in quotation marks is read as YAML; any other string stays as typed.
        return value if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1 else typed
    if isinstance(value, list | dict):
        return value if text[:1] in ("[", "{") and text[-1:] in ("]", "}") else typed
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # YAML would read 12:30 as a number in base 60 and 2024-01-01 as a date, and would ignore the text after a #.
    if "#" in text or (is_number and ":" in text) or not isinstance(value, int | float | None):
        return typed
    return value


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested dicts with overrides such as `{"key.sub": value}` applied.

    Raises:
        RecipeError: an override sets a key below a value that is not a dict.
    """
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
