"""Lazy import of public names, so that a command loads only the libraries that it needs."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` function for a package, which imports each public name on first use.

    Args:
        package: dotted name of the package.
        names: mapping from each module of the package to its public names, separated by spaces.
    """
    modules = {name: f"{package}.{module}" for module, listed in names.items() for name in listed.split()}

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return attribute
