"""Checks of the classes and templates that a user passes in Python."""

from collections.abc import Iterable, Mapping
from typing import Any

from clipkit.data import Classes, Templates
from clipkit.errors import DataError, check_text
from clipkit.images import kind_of


def checked_classes(classes: Any) -> Classes:
    """Check the argument `classes`, and return a list of names or a mapping of each label to its names.

    Raises:
        DataError: the type of the argument is unsupported, or there are no classes.
    """
    return _checked(classes, "classes", "a list of names, or a dict that maps each label to its names")


def checked_templates(templates: Any) -> Templates:
    """Check the argument `templates`, and return a list of templates or a mapping of each class to its prompts.

    A single string becomes a list of one template.

    Raises:
        DataError: the type of the argument is unsupported, or there are no templates.
    """
    several = [templates] if isinstance(templates, str) and templates else templates
    return _checked(several, "templates", 'a list such as ["a photo of a {c}."], or a dict of prompts for each class')


def _checked(given: Any, what: str, advice: str) -> Any:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DataError(f"{what} is {kind_of(given) if not isinstance(given, str) else repr(given)}; give {advice}")
    if isinstance(given, Mapping):
        several: Any = {
            label: [texts] if isinstance(texts, str) else _strings(texts, f"{what}[{label!r}]", advice)
            for label, texts in given.items()
        }
        _strings([text for texts in several.values() for text in texts], what, advice)
        if empty := [label for label, texts in several.items() if not texts]:
            raise DataError(f"{what}[{empty[0]!r}] is empty; give at least one text")
    else:
        several = _strings(given, what, advice)
    if not several:
        raise DataError(f"{what} is empty; give {advice}")
    return several


def _strings(texts: Any, what: str, advice: str) -> list[str]:
    if not isinstance(texts, Iterable):
        raise DataError(f"{what} is {kind_of(texts)}; give {advice}")
    several = list(texts)
    wrong = next((text for text in several if not isinstance(text, str)), None)
    if wrong is not None or None in several:
        raise DataError(f"{what} contains {kind_of(wrong)}, which is not a text; give {advice}")
    for text in several:
        check_text(text)
    return several
