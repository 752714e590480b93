"""Versions of clipkit and of the libraries that it uses."""

__version__ = "0.1.0"


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed library; None if it is not installed, or installed without metadata."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
