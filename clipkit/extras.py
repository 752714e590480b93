"""Libraries of extras, which a plain `pip install clipkit-torch` leaves out."""

import importlib.util

from clipkit.errors import UserError


def check_extra(extra: str, modules: list[str], error: type[UserError] = UserError) -> None:
    """Check that the libraries of an extra can be imported.

    Args:
        extra: its name in pyproject.toml.
        modules: the libraries, by the names under which they are imported.
        error: type of the error.

    Raises:
        UserError: one of them is not installed; names the pip command.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise error(f"{missing[0]} is required but not installed; pip install 'clipkit-torch[{extra}]'")
