"""Numbers that are not finite: in an update, in the weights of a model, in a checkpoint. None of them is ever saved."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.errors import ModelError, TrainingError
from clipkit.recipe import Recipe
from clipkit.training.model import are_finite
from clipkit.training.optimizer import WarmupCosine
from tests.conftest import read_lines

Build = Callable[..., Recipe]


def all_tensors_are_finite(folder: Path) -> bool:
    files = [*folder.rglob("*.safetensors")]
    return all(bool(value.isfinite().all()) for file in files for value in load_file(file).values())


def learning_rate_at(monkeypatch: pytest.MonkeyPatch, step: int, lr: float) -> None:
    """Give one step a learning rate that no recipe may have."""
    schedule = WarmupCosine.__call__
    monkeypatch.setattr(WarmupCosine, "__call__", lambda self, now: lr if now == step else schedule(self, now))


@pytest.mark.parametrize("lr", [math.inf, -math.inf, math.nan, 1e38, 1e30])
def test_an_update_that_is_not_finite_is_never_saved(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: float
) -> None:
    learning_rate_at(monkeypatch, 3, lr)
    changes = {"data.validation": None, "checkpoint.every_steps": 2, "train.epochs": 4}
    with pytest.raises(TrainingError, match="step 4: .*updated weights.*weights after step 2 .*optim.lr"):
        clipkit.train(recipe(changes))
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert all_tensors_are_finite(run)
    assert not (run / "model").exists()
    assert not (run / "results.json").exists()
    assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == [1, 2, 3]
    assert "updated weights" in (run / "findings.json").read_text()
    monkeypatch.undo()
    clipkit.train(recipe(changes), resume=True)  # the saved state is sound
    assert all_tensors_are_finite(run)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_first_update_that_is_not_finite_saves_nothing(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    learning_rate_at(monkeypatch, 0, math.inf)
    with pytest.raises(TrainingError, match="step 1: .*no weights were saved"):
        clipkit.train(recipe({"optim.name": name, "train.epochs": 1, "train.batch_size": 16, "train.ema": 0.9}))
    assert not [*(tmp_path / "run").rglob("*.safetensors")]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["logit_scale", "image", "unused word"])
def test_a_model_with_weights_that_are_not_finite_is_refused(
    recipe: Build, tiny_clip: Path, tmp_path: Path, part: str, value: float
) -> None:
    model = clipkit.load(tiny_clip)
    with torch.no_grad():
        if part == "logit_scale":
            model.logit_scale.fill_(value)
        elif part == "image":
            next(model.image.parameters()).view(-1)[0] = value
        else:
            words = next(weight for name, weight in model.text.named_parameters() if "token_embedding" in name)
            words[700] = value
    model.save(tmp_path / "bad")
    with pytest.raises(ModelError, match="bad: .*not finite"):
        clipkit.train(recipe({"model.name": str(tmp_path / "bad")}))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_are_finite() -> None:
    assert are_finite([])
    whole = [torch.zeros(3), torch.full((2, 2), 1e18), torch.tensor(0.0)]
    assert are_finite(whole)
    for value in (math.nan, math.inf, -math.inf):
        for position in range(3):
            weights = [weight.clone() for weight in whole]
            weights[position].view(-1)[-1] = value
            assert not are_finite(weights)


def changes_of(**changes: Any) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in changes.items()}


@pytest.mark.parametrize(
    "changes",
    [
        changes_of(optim__lr=1000, optim__clip=None, optim__name="sgd"),
        changes_of(optim__lr=1000, optim__weight_decay=1000),
        changes_of(optim__eps=1e-30, optim__betas=[0, 0]),
        changes_of(optim__betas=[0.999999, 0], optim__lr=1000),
        changes_of(optim__clip=1e-9),
        changes_of(loss__label_smoothing=0.999),
        changes_of(train__seed=2**63 - 1, optim__warmup=0),
        changes_of(train__timeout_minutes=525_600, checkpoint__every_minutes=525_600),
    ],
    ids=str,
)
def test_the_extremes_of_a_recipe_train_or_stop_in_one_line(
    recipe: Build, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with suppress(TrainingError):
        clipkit.train(recipe({"data.validation": None, "train.epochs": 3, **changes}))
    assert all_tensors_are_finite(tmp_path / "run")
