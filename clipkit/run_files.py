"""The files of a run folder: their names, and how they are read and appended to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.parsing import parse_json, read_yaml


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
        recipe = read_yaml(file)
    except (OSError, ValueError):
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
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one per line, without damaged lines; a missing file has none.

    A run that is killed while it writes leaves an incomplete last line; a machine that loses power leaves zeros.
    """
    return [row for line in _lines(file) if (row := row_of(line)) is not None]


def last_row(file: Path) -> dict[str, Any] | None:
    """Return the last complete row of a file without parsing the others."""
    return next((row for line in reversed(_lines(file)) if (row := row_of(line)) is not None), None)


def row_of(line: str | bytes) -> dict[str, Any] | None:
    """Return the row of a line, which has a step; None: the line is damaged."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if is_row else None


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.is_file() else []
