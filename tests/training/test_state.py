"""The state of a run, written to a checkpoint and restored from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clipkit.recipe import Recipe
from clipkit.training.folder.checkpoint import checkpoint_of, write_checkpoint
from clipkit.training.folder.keeper import Keeper
from clipkit.training.folder.resume import StartPoint, find_checkpoint
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.plan import Plan, make_plan
from clipkit.training.state import State, resumed_micro_batch_size
from clipkit.training.step import Step

Build = Callable[..., Recipe]
CHANGES = {"train.epochs": 4, "train.ema": 0.9, "train.micro_batch_size": 4}


def state_of(plan: Plan) -> State:
    train = plan.recipe.train
    step = Step(plan.model, {}, plan.objective.value, plan.processes, plan.accelerator, train.batch_size, 4, train.seed)
    return State(plan, step)


def find(folder: RunFolder, plan: Plan) -> StartPoint:
    return find_checkpoint(folder, plan.recipe, plan.steps, plan.identity, plan.processes)


def test_checkpoint_restores_the_state(recipe: Build, tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path / "run"), make_plan(recipe(CHANGES))
    state = state_of(plan)
    for parameter in plan.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    plan.optimizer.step()
    assert plan.learned.average is not None
    plan.learned.average.update(1)
    state.step = 5
    saved = state.to_save()
    Keeper(folder, plan.recipe.checkpoint, None).write(state.step, plan.learned.tensors(), saved)

    other = make_plan(recipe(CHANGES))
    start = find(folder, other)
    assert (start.step, start.notes, start.finished) == (5, [], False)
    assert start.saved is not None
    restored = state_of(other)
    restored.restore(checkpoint_of(folder.checkpoints, start.step), start.saved, start.step)
    assert (restored.step, restored.saved_at) == (5, 5)
    assert restored.seconds >= saved["seconds"]
    before, after = plan.learned.tensors(), other.learned.tensors()
    assert before.keys() == after.keys() == {"model", "optimizer", "average"}
    for file, tensors in before.items():
        assert tensors.keys() == after[file].keys()
        assert all(torch.equal(value, after[file][name]) for name, value in tensors.items()), file


@pytest.mark.parametrize(("name", "changed"), [("versions", None), ("processes", 2), ("device", "cuda, bf16")])
def test_other_machine_measures_its_micro_batch_again(recipe: Build, name: str, changed: object) -> None:
    plan = make_plan(recipe(CHANGES))
    saved = state_of(plan).to_save()
    assert resumed_micro_batch_size(plan, saved) == 4
    assert resumed_micro_batch_size(plan, {**saved, "identity": {**saved["identity"], name: changed}}) is None


def test_checkpoint_with_the_names_before_version_0_1_resumes(recipe: Build, tmp_path: Path) -> None:
    """Checkpoints then said "pictures" where they now say "images", in the identity and in the recipe."""
    views = {"image": {"policies": ["moco", "moco"], "positives": "image"}}
    folder = RunFolder(tmp_path / "run")
    plan = make_plan(recipe({**CHANGES, "objective": {"captions": 1.0, "views": 1.0}, "views": views}))
    saved = {**state_of(plan).to_save(), "step": 3, "best": None, "logs": folder.mark()}
    saved["identity"] = {name.replace("images", "pictures"): value for name, value in saved["identity"].items()}
    assert "the pictures or captions of data.train" in saved["identity"]
    saved["recipe"]["views"]["image"]["positives"] = "picture"
    write_checkpoint(folder.checkpoints, 3, plan.learned.tensors(), saved)
    start = find(folder, plan)
    assert (start.step, start.notes) == (3, [])
