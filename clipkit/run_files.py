"""Names of the files in a run folder, and functions that read them or append to them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.parsing import parse_json, read_yaml

IN_METRICS = ("loss", "grad_norm")
"""Keys that every row of metrics.jsonl has; their values are numbers."""
IN_SPEED = ("pairs_per_second", "data_wait_seconds", "step_seconds")
"""Keys that every row of speed.jsonl has; their values are numbers."""


class RunFiles:
    """Paths of all files in a run folder, whether they exist or not.

    Example:
        >>> RunFiles("runs/clip").metrics.name
        'metrics.jsonl'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.marker = self.path / ".clipkit-run"
        """File that marks a folder as a run, so that clipkit may clear the folder. It lists the written model files."""
        self.recipe = self.path / "recipe.yaml"
        """Complete recipe, with all defaults."""
        self.metrics = self.path / "metrics.jsonl"
        """One row per logged step: values that depend only on the recipe, e.g. the loss."""
        self.speed = self.path / "speed.jsonl"
        """One row per logged step: times and memory use, which depend on the machine."""
        self.evaluations = self.path / "evaluations.jsonl"
        self.bad_samples = self.path / "bad_samples.jsonl"
        """One row per image that is missing or unreadable."""
        self.findings = self.path / "findings.json"
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"
        """HTML report, written last: a run is finished when both `results` and `report` exist."""
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        """Adapters of `tune: lora` and `tune: dora` without the base model; in `model`, the adapters are merged."""
        self.tracking = self.path / "tracking"
        self.files = (
            self.recipe, self.metrics, self.speed, self.evaluations, self.bad_samples, self.findings, self.results,
            self.report, self.log,
        )  # fmt: skip
        self.folders = (self.checkpoints, self.model, self.adapter, self.tracking)

    @property
    def is_run(self) -> bool:
        """True if the folder contains a run, finished or not."""
        return self.recipe.is_file()

    @property
    def is_marked(self) -> bool:
        """True if the folder contains clipkit's marker file for run folders."""
        return self.marker.is_file() and not self.marker.is_symlink()

    @property
    def model_files(self) -> list[str]:
        """Names of the files that clipkit wrote to the folder `model`; empty if unknown."""
        return self.marker.read_text(encoding="utf-8").splitlines() if self.is_marked else []

    @property
    def is_finished(self) -> bool:
        """True if the results and the report have been written."""
        return self.results.is_file() and self.report.is_file()


def recipe_of(folder: str | Path) -> dict[str, Any]:
    """Return the recipe of a run as a dict.

    Raises:
        DataError: the folder does not contain a readable recipe.
    """
    file = RunFiles(folder).recipe
    try:
        recipe = read_yaml(file)
    except (OSError, ValueError):
        recipe = None
    if not isinstance(recipe, dict):
        raise DataError(
            f"{folder}: is not a run folder (it has no readable recipe.yaml); give the output folder of a run"
        )
    return recipe


def results_of(folder: str | Path) -> dict[str, Any] | None:
    """Return the content of results.json, or None if the file is missing or unreadable."""
    results = read_object(RunFiles(folder).results)
    return results if isinstance(results.get("settings"), dict) else None


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if the file is missing or unreadable."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append a JSON object to a file, as one line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def read_rows(file: Path, needed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the JSON objects of a log file with one object per line; skip damaged lines.

    A killed process or a power failure can damage lines. If the file is missing, the result is an empty list.

    Args:
        file: log file of a run.
        needed: keys whose values must be numbers; rows without one of these numbers are skipped.
    """
    rows = (row for line in _lines(file) if (row := row_of(line)) is not None)
    return [row for row in rows if all(isinstance(row.get(name), int | float) for name in needed)]


def last_row(file: Path) -> dict[str, Any] | None:
    """Return the last undamaged row of a log file; None if there is none."""
    return next((row for line in reversed(_lines(file)) if (row := row_of(line)) is not None), None)


def row_of(line: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line of a log file; None if damaged or without an integer `step`."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if is_row else None


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.is_file() else []


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping: keys become dotted paths such as optim.lr.

    Example:
        >>> flat({"optim": {"lr": 1e-5}, "output": "run"})
        {'optim.lr': 1e-05, 'output': 'run'}
    """
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values
