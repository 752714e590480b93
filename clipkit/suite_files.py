"""Files of the built-in evaluation suites, without heavy imports."""

from pathlib import Path

from clipkit.parsing import read_yaml


def suites_folder() -> Path:
    """Return the folder of the built-in suites, in the installed package or in a source checkout."""
    package = Path(__file__).parent
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "benchmarks" / "suites"


def suite_names() -> list[str]:
    """Return the names of all built-in suites and datasets.

    Example:
        >>> {"retrieval", "urban1k"} <= set(suite_names())
        True
    """
    names = set()
    for file in suites_folder().glob("*.yaml"):
        datasets = read_yaml(file).get("datasets", ())
        names |= {file.stem, *(entry if isinstance(entry, str) else entry["name"] for entry in datasets)}
    return sorted(names)
