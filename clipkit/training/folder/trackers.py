"""Experiment trackers of Accelerate, to which a run sends its logged rows."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipkit.errors import RecipeError, printable
from clipkit.recipe import Recipe
from clipkit.run_files import flat
from clipkit.training.folder.tracked_results import send_results


def check_installed(names: Sequence[str]) -> None:
    """Check that the trackers of a recipe can be imported.

    Raises:
        RecipeError: a tracker is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"train.log_with: {name} is not installed; run pip install {name}, or remove {name} from train.log_with"
            )


@dataclass(frozen=True)
class Trackers:
    """The trackers of a recipe, on the main process. Without trackers, all methods do nothing.

    Args:
        accelerator: starts the trackers and sends them the rows.
        recipe: recipe of the run, which names the trackers. The trackers store the recipe as their configuration.
        folder: folder in which the trackers write their files.
    """

    accelerator: Accelerator
    recipe: Recipe
    folder: Path

    def start(self) -> None:
        """Start the trackers and send them the recipe."""
        if not self.recipe.train.log_with:
            return
        from accelerate.tracking import filter_trackers

        self.accelerator.log_with = filter_trackers(self.recipe.train.log_with, self.folder)
        self.accelerator.project_configuration.set_directories(str(self.folder))
        self.accelerator.init_trackers("clipkit", config=_simple(flat(self.recipe.model_dump(mode="json"))))

    def log(self, kind: str, row: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a row to the trackers, under names such as `train/loss`."""
        if self.accelerator.trackers and self.recipe.train.log_with:
            numbers = {f"{kind}/{name}": value for name, value in row.items() if isinstance(value, int | float)}
            for tracker in self.accelerator.trackers:
                tracker.log({_name_for(tracker.name, name): value for name, value in numbers.items()}, step=step)

    def end(self, results: Mapping[str, Any]) -> None:
        """Send the content of results.json and the report, and wait until the trackers have written everything."""
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process else ():
            send_results(tracker, results, self.folder.parent)
        if self.recipe.train.log_with:
            self.accelerator.end_training()


def _name_for(tracker: str, figure: str) -> str:
    """Return a metric name that a tracker accepts; MLflow refuses characters such as the @ in recall@5."""
    return re.sub(r"[^a-zA-Z0-9_\-. :/]", "_", figure.replace("@", "_at_")) if tracker == "mlflow" else figure


def _simple(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to types that every tracker accepts, and remove passwords from URLs."""
    return {key: value if isinstance(value, int | float) else printable(str(value)) for key, value in values.items()}
