"""Gradual unfreezing: which blocks learn in which step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.errors import RecipeError
from clipkit.models.tuning import tune
from clipkit.recipe import Recipe
from clipkit.training.depth import block_numbers
from clipkit.training.plan import make_plan
from clipkit.training.unfreeze import first_steps, frozen_until
from tests.training.folder.test_resume import interrupted

Build = Callable[..., Recipe]


def starts_of(model: clipkit.DualEncoder, unfreeze: Any, steps: int = 10) -> dict[int, int]:
    """Return the first step of each trained block of the image tower."""
    starts, numbers = first_steps(model, unfreeze, steps), block_numbers(model.image)
    trained = {name for name, parameter in model.image.named_parameters() if parameter.requires_grad}
    return {number: starts.get(f"image.{name}", 0) for name, number in numbers.items() if name in trained}


def test_blocks_start_from_the_last_to_the_first(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip)
    assert starts_of(model, None) == {1: 0, 2: 0, 3: 0}
    assert starts_of(model, 0.6, 100) == {3: 20, 2: 40, 1: 60}
    assert starts_of(model, {"full": 0.25}) == {1: 3, 2: 3, 3: 3}  # from the first step after a quarter of 10
    assert starts_of(model, {"last:1": 0.1, "full": 0.5}) == {3: 1, 2: 5, 1: 5}
    assert starts_of(model, {"full": 0.5, "last:2": 0.2}) == {3: 2, 2: 2, 1: 5}
    starts = first_steps(model, 0.6, 100)
    assert not {"image.head.weight", "text.head.weight", "logit_scale"} & starts.keys()
    tune(model.image, "last:2")
    assert starts_of(model, 0.6, 100) == {3: 30, 2: 60}
    assert starts_of(model, {"last:2": 0.1, "full": 0.5}) == {3: 1, 2: 1}


def test_invalid_schedules_are_refused(tiny_clip: Path, recipe: Build) -> None:
    model = clipkit.load(tiny_clip)
    with pytest.raises(RecipeError, match="block 2 of 3 of the image tower"):
        first_steps(model, {"last:1": 0.1}, 10)
    for value, shown in (({"head": 0.1}, "'head'"), ({"last:0": 0.1}, "'last:0'"), (1.0, "1"), ({}, "unfreeze")):
        with pytest.raises(RecipeError, match=shown) as caught:
            recipe({"optim.unfreeze": value})
        assert "optim.unfreeze" in str(caught.value)
    for tower in model.sides.values():
        tower.head.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    with pytest.raises(RecipeError, match="first step"):
        first_steps(model, {"full": 0.5}, 10)


def test_waiting_parameters_get_no_gradient(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip)
    starts = first_steps(model, {"last:1": 0.1, "full": 0.5}, 10)
    for step, learning in ((0, {"head"}), (1, {"head", "3"}), (5, {"head", "1", "2", "3"})):
        with frozen_until(starts, model, step):
            numbers = block_numbers(model.image)
            found = {str(numbers.get(name, "head")) for name, p in model.image.named_parameters() if p.requires_grad}
        assert found == learning
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_run_moves_only_blocks_that_have_started(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    schedule = {"last:1": 0.25, "full": 0.5}
    changes = {
        "optim.unfreeze": schedule, "train.epochs": 4, "checkpoint.every_steps": 1, "checkpoint.keep_last": 20,
        "data.validation": None, "eval.metric": "auto",
    }  # fmt: skip
    clipkit.train(recipe(changes))
    start, starts = clipkit.load(tiny_clip), make_plan(recipe(changes)).first_steps
    before = dict(start.named_parameters())
    assert len(set(starts.values())) == 2
    for step in range(1, 9):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        weights, state = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
        for name in ("image.head.weight", *starts):
            begun = starts.get(name, 0) < step
            assert torch.equal(weights[name], before[name]) != begun, (step, name)
        # Moments, and their bias correction, begin with the first update of a block.
        counts = {value.item() for key, value in state.items() if key.endswith(".step")}
        assert counts == {float(step - begun) for begun in (0, *starts.values()) if begun < step}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "from step" in log
    assert [line.split()[-1] for line in log.splitlines() if "image block" in line] == ["5", "3"]
    other = {**changes, "output": str(tmp_path / "other")}
    interrupted(recipe(other), after=3)
    clipkit.train(recipe(other), resume=True)
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
