"""Lowest declared version of each direct dependency, as the constraints of `make test-lowest`.

python tests/lowest.py          # writes tests/lowest.txt from pyproject.toml
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FILE = Path(__file__).with_suffix(".txt")


def lowest(project: Path = PROJECT) -> str:
    """Return one line `name==version` for each dependency of the package and of its extras `data` and `report`."""
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    lines = []
    extras = declared["optional-dependencies"]
    for requirement in [*declared["dependencies"], *extras["data"], *extras["report"]]:
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)(,.*)?", requirement)
        if match is None:  # not pinned
            continue
        lines.append(f"{match[1]}=={match[2]}\n")
    return "".join(sorted(lines, key=str.lower))


if __name__ == "__main__":
    FILE.write_text(lowest(), encoding="utf-8")
