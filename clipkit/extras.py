"""Optional libraries, which are installed only with an extra, e.g. `pip install clipkit-torch[NAME]`."""

import importlib.util

from clipkit.errors import UserError


def check_extra(extra: str, modules: list[str], error: type[UserError] = UserError) -> None:
    """Check that the libraries of an extra can be imported.

    Args:
        extra: name of the extra in pyproject.toml.
        modules: import names of the libraries.
        error: type of the error to raise.

    Raises:
        UserError: a library is not installed; the message contains the pip command.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise error(f"{missing[0]} is required but not installed; pip install 'clipkit-torch[{extra}]'")
