"""The optimizer's parameter groups and the learning rate schedule."""

import math

import pytest

import clipkit
from clipkit.errors import RecipeError
from clipkit.models.tuning import tune
from clipkit.recipe import OptimRecipe
from clipkit.training.optimizer import WarmupCosine, build_optimizer


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
    decay, no_decay = build_optimizer(model, OptimRecipe(weight_decay=0.3), lambda _: "new").param_groups
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
