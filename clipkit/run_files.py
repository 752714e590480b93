"""The files of a run folder: their names, and how they are read and appended to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clipkit.errors import DataError


class RunFiles:
    """Paths of everything that a run writes; creates nothing.

    Args:
        path: the run folder.

    Example:
        >>> RunFiles("runs/clip").metrics.name
        'metrics.jsonl'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        """The recipe with every default written out."""
        self.metrics = self.path / "metrics.jsonl"
        """One row per logged step: the values that the recipe determines."""
        self.speed = self.path / "speed.jsonl"
        """One row per logged step: times and memory, which depend on the machine."""
        self.evaluations = self.path / "evaluations.jsonl"
        self.bad_samples = self.path / "bad_samples.jsonl"
        """One row per image that is missing or unreadable."""
        self.findings = self.path / "findings.json"
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"
        """Written last: with `results` and `report` both there, the run is finished."""
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.tracking = self.path / "tracking"
        self.files = (
            self.recipe, self.metrics, self.speed, self.evaluations, self.bad_samples, self.findings, self.results,
            self.report, self.log,
        )  # fmt: skip
        self.folders = (self.checkpoints, self.model, self.tracking)

    @property
    def is_run(self) -> bool:
        """True if the folder holds a run, finished or not."""
        return self.recipe.is_file()

    @property
    def is_finished(self) -> bool:
        """True once the results and the report are written."""
        return self.results.is_file() and self.report.is_file()


def recipe_of(folder: str | Path) -> dict[str, Any]:
    """Return the recipe of a run, as plain values.

    Raises:
        DataError: the folder holds no readable recipe.
    """
    file = RunFiles(folder).recipe
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, dict):
        raise DataError(f"{folder}: not a run folder (no readable recipe.yaml); give the output folder of a recipe")
    return recipe


def results_of(folder: str | Path) -> dict[str, Any] | None:
    """Return the content of results.json, or None while there is none or it is unreadable."""
    results = read_object(RunFiles(folder).results)
    return results if isinstance(results.get("settings"), dict) else None


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file is missing or unreadable."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one per line, up to the first incomplete line; a missing file has none.

    A run that is killed while it writes leaves an incomplete last line.
    """
    rows = []
    for line in _lines(file):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def last_row(file: Path) -> dict[str, Any] | None:
    """Return the last complete row of a file without parsing the others."""
    for line in reversed(_lines(file)):
        try:
            row: dict[str, Any] = json.loads(line)
            return row
        except ValueError:
            continue
    return None


def step_of(line: str) -> float:
    """Return the step of a line; infinity for an incomplete line."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key.

    Example:
        >>> flat({"optim": {"lr": 1e-5}, "output": "run"})
        {'optim.lr': 1e-05, 'output': 'run'}
    """
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values
