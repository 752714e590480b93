"""The run folder: what a run leaves behind, and never overwrites unasked."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit.errors import OutputError

# What belongs to a run; nothing else in the folder is ever touched.
_FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "speed.jsonl",
    "evaluations.jsonl",
    "results.json",
    "report.html",
    "log.txt",
)
_FOLDERS = ("checkpoints", "model")


class RunFolder:
    """Paths of a run and the files it appends to.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.speed = self.path / "speed.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    def claim(self, resume: bool, overwrite: bool) -> None:
        """See that the folder is free, or that the user said what to do with the run in it. Changes nothing.

        Raises:
            OutputError: it holds a run and neither was asked for, or it cannot be written to.
        """
        if self.recipe.exists() and not (resume or overwrite):
            raise OutputError(
                f"{self.path}: already holds a run; add --resume to go on with it, --overwrite to replace it, "
                "or give another output"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):  # of its own: several processes look at once
                pass
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written to ({error.strerror}); give another output") from None

    def clear(self) -> None:
        """Remove the run that is here, and only that."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def cut_after(self, step: int) -> None:
        """Drop the lines of steps after `step`, which a resumed run writes again."""
        for file in (self.metrics, self.speed, self.evaluations):
            if file.is_file():
                kept = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= step]
                file.write_text("".join(line + "\n" for line in kept))


def append(file: Path, row: Mapping[str, Any]) -> None:
    """One JSON object as a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
