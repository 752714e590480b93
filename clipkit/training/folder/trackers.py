"""What a run logs, handed on to Accelerate's trackers."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipkit.errors import RecipeError
from clipkit.recipe import Recipe
from clipkit.run_files import RunFiles


def check_installed(names: Sequence[str]) -> None:
    """Check that the trackers of a recipe can be imported.

    Raises:
        RecipeError: one of them is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f"train.log_with: {name} is not installed; pip install {name}, or leave it out")


class Trackers:
    """The trackers of a recipe, on the first process; without any it does nothing.

    Args:
        accelerator: whose trackers they are.
        recipe: names them, and is what they show as configuration.
        folder: the run's; what they write themselves goes into `tracking`.
    """

    def __init__(self, accelerator: Accelerator, recipe: Recipe, folder: Path) -> None:
        self.accelerator = accelerator
        self.recipe = recipe
        self.folder = RunFiles(folder).tracking

    def start(self) -> None:
        """Tell them that a run begins."""
        if not self.recipe.train.log_with:
            return
        from accelerate.tracking import filter_trackers

        self.accelerator.log_with = filter_trackers(self.recipe.train.log_with, self.folder)
        self.accelerator.project_configuration.set_directories(str(self.folder))
        self.accelerator.init_trackers("clipkit", config=dict(_flat(self.recipe.model_dump(mode="json"))))

    def log(self, kind: str, row: Mapping[str, Any], step: int) -> None:
        """A row of figures, as `kind/name`."""
        if self.accelerator.trackers and self.recipe.train.log_with:
            numbers = {f"{kind}/{name}": value for name, value in row.items() if isinstance(value, int | float)}
            self.accelerator.log(numbers, step=step)

    def end(self) -> None:
        """Let them finish what they write."""
        if self.recipe.train.log_with:
            self.accelerator.end_training()


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level, values that every tracker takes."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return found
