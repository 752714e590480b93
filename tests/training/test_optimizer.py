"""The optimizer's parameter groups and the learning rate schedule."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.errors import RecipeError
from clipkit.models.tuning import tune
from clipkit.recipe import OptimRecipe, Recipe
from clipkit.training.optimizer import WarmupCosine, build_optimizer
from clipkit.training.weights import Weights
from tests.conftest import read_lines


def test_schedule_rises_to_the_peak_and_falls_to_zero() -> None:
    schedule = WarmupCosine(2.0, 0.1, 100)
    rates = [schedule(step) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * step / 90) for step in range(90)])
    assert WarmupCosine(2.0, 10, 100)(50) == rates[50]
    assert WarmupCosine(1.0, 0, 4)(0) == 1.0


def test_schedule_refuses_a_warmup_longer_than_the_run() -> None:
    with pytest.raises(RecipeError, match="optim.warmup is 500.* 20"):
        WarmupCosine(1.0, 500, 20)


def test_weight_decay_skips_biases_norms_positions_and_scale(tiny_clip: object) -> None:
    model = clipkit.load(str(tiny_clip), device="cpu")
    tune(model.image, "frozen")
    decay, no_decay = build_optimizer(
        Weights(model).trained, OptimRecipe(weight_decay=0.3), lambda _: "new"
    ).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decay["params"]}
    kept = {names[id(parameter)] for parameter in no_decay["params"]}
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.3, 0.0)
    assert "text.trunk.native.embeddings.token_embedding.weight" in decayed
    assert "text.head.weight" in decayed
    assert "logit_scale" in kept
    assert "text.trunk.native.embeddings.position_embedding.weight" in kept
    assert all("bias" not in name and "norm" not in name for name in decayed)
    assert not any(name.startswith("image.") for name in decayed | kept)


def test_held_steps_come_before_the_warmup() -> None:
    held, plain = WarmupCosine(2.0, 0.1, 105, held=5), WarmupCosine(2.0, 0.1, 100)
    assert [held(step) for step in range(105)] == [0.0] * 5 + [plain(step) for step in range(100)]
    assert held.first_at_peak == 15
    with pytest.raises(RecipeError, match="optim.warm_moments is 20 .* 20"):
        WarmupCosine(1.0, 0.1, 20, held=20)
    with pytest.raises(RecipeError, match=r"optim.warmup is 16 .* 15 .*after optim\.warm_moments"):
        WarmupCosine(1.0, 16, 20, held=5)


def test_warm_moments_hold_the_weights_and_estimate_the_moments(
    recipe: Callable[..., Recipe], tmp_path: Path, tiny_clip: Path
) -> None:
    changes = {
        "optim.warm_moments": 2, "train.epochs": 2, "checkpoint.every_steps": 1, "checkpoint.keep_last": 9,
        "optim.betas": [0.5, 0.5],
    }  # fmt: skip
    clipkit.train(recipe(changes))
    start = dict(clipkit.load(tiny_clip).named_parameters())
    checkpoints = [tmp_path / "run" / "checkpoints" / f"step-{step:06d}" for step in range(1, 5)]
    weights = [load_file(folder / "model.safetensors") for folder in checkpoints]
    moments = [load_file(folder / "optimizer.safetensors") for folder in checkpoints]
    assert all(torch.equal(weights[1][name], value) for name, value in start.items())
    assert not torch.equal(weights[2]["logit_scale"], start["logit_scale"])
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["lr"] > 0 for row in rows] == [False, False, True, True]
    # The moments are those of two gradients at the same weights, with their bias correction.
    assert moments[1]["0.step"].item() == 2.0
    first, second = (moments[step]["0.exp_avg"] for step in (0, 1))
    gradients = 2 * first, 2 * (second - 0.5 * first)
    squares = 0.25 * gradients[0] ** 2 + 0.5 * gradients[1] ** 2
    torch.testing.assert_close(moments[1]["0.exp_avg_sq"], squares, rtol=1e-4, atol=1e-12)
    assert "steps 1 to 2" in (tmp_path / "run" / "log.txt").read_text()


def test_warm_moments_do_not_apply_to_sgd(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"optim\.warm_moments"):
        recipe({"optim.name": "sgd", "optim.warm_moments": 2})
