"""`make_plan`: invalid input is refused before anything is written, and the calendar of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import DataError, ModelError, RecipeError, UserError
from clipkit.recipe import Recipe
from clipkit.training.calendar import Calendar
from clipkit.training.plan import make_plan

Build = Callable[..., Recipe]


def test_plan_reads_the_recipe_and_writes_nothing(recipe: Build, tmp_path: Path, shapes: Path, tiny_clip: Path) -> None:
    def files() -> dict[Path, int]:
        folders = (tmp_path, shapes, tiny_clip)
        return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}

    before = files()
    plan = make_plan(recipe({"train.epochs": 3, "eval.interpolate": True, "train.ema": 0.9}))
    assert files() == before
    assert (plan.steps, plan.precision, plan.processes.count) == (6, "fp32", 1)
    assert plan.start.keys() == dict(plan.model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train.batch_size": 17}, DataError, "batch_size is 17.* 16"),
        ({"optim.warmup": 50}, RecipeError, "optim.warmup is 50.* 4"),
        ({"loss.name": "sigmoid"}, ModelError, "sigmoid.*bias"),
        ({"model.text.dropout": 0.1}, ModelError, "model.text.dropout is 0.1"),
        ({"train.log_with": ["clearml"]}, RecipeError, "train.log_with: clearml"),
        ({"data.train": "none.csv"}, DataError, "none.csv"),
        ({"model.name": "no such folder/x/y"}, UserError, "no such folder/x/y"),
    ],
)
def test_plan_refuses_invalid_input(
    recipe: Build, tmp_path: Path, changes: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        make_plan(recipe(changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


CALENDAR = Calendar(steps=14, steps_per_epoch=4, log_every=5, evaluate_every_epochs=2, save_every=6)


def test_calendar_logs_every_n_steps_and_at_the_end() -> None:
    assert [step for step in range(1, 15) if CALENDAR.logs(step)] == [5, 10, 14]


def test_calendar_saves_every_n_steps_and_at_the_end() -> None:
    assert [step for step in range(1, 15) if CALENDAR.saves_after(step)] == [6, 12, 14]


def test_calendar_evaluates_after_whole_epochs() -> None:
    assert [step for step in range(15) if CALENDAR.evaluates_after(step)] == [8]


def test_calendar_evaluates_after_the_last_epoch_whatever_its_number() -> None:
    calendar = Calendar(steps=12, steps_per_epoch=4, log_every=1, evaluate_every_epochs=2, save_every=6)
    assert [step for step in range(13) if calendar.evaluates_after(step)] == [8, 12]
