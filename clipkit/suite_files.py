"""Files of the built-in suites, without heavy imports."""

from pathlib import Path


def suites_folder() -> Path:
    """Return the folder of the built-in suites.

    The folder is in the installed package, or next to the package in a source checkout.
    """
    package = Path(__file__).parent
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "benchmarks" / "suites"
