"""Lowest declared version of each direct dependency, as the constraints of `make test-lowest`.

python tests/lowest.py          # writes tests/lowest.txt from pyproject.toml
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FILE = Path(__file__).with_suffix(".txt")


def lowest(project: Path = PROJECT) -> str:
    """Return one line `name==version` for each dependency with a lower bound, of the package and of its extra `all`."""
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = declared["optional-dependencies"]
    names = extras["all"][0].partition("[")[2].rstrip("]").split(",")
    requirements = [*declared["dependencies"], *(line for name in names for line in extras[name])]
    matches = [re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)(,.*)?", requirement) for requirement in requirements]
    return "".join(sorted((f"{match[1]}=={match[2]}\n" for match in matches if match), key=str.lower))


if __name__ == "__main__":
    FILE.write_text(lowest(), encoding="utf-8")
