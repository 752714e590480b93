"""`loss.logit_scale` and `loss.logit_bias`: trained, frozen, or fixed at a value."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.errors import RecipeError
from clipkit.losses import infonce
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import read_lines
from tests.models.families import build

Build = Callable[..., Recipe]


def test_scale_is_fixed_at_a_value_and_saved(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    every = {"data.augment": "none", "data.captions": "all", "train.batch_size": 32, "loss.duplicates": "negative"}
    clipkit.train(recipe({"loss.logit_scale": 50, "train.epochs": 1, **every}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["scale"] for row in rows] == pytest.approx([50.0] * len(rows), rel=1e-6)
    assert clipkit.load(tmp_path / "run").logit_scale.item() == pytest.approx(math.log(50), rel=1e-6)
    assert "the logit scale is fixed at 50" in (tmp_path / "run" / "log.txt").read_text()
    plan, model = make_plan(recipe({"loss.logit_scale": 50})), clipkit.load(tiny_clip)
    assert not plan.model.logit_scale.requires_grad
    pairs = plan.data.train.pairs
    images = model.encode_image([pairs.images[image] for image in pairs.image_of_caption])
    expected = infonce(images, model.encode_text(pairs.captions), torch.tensor(50.0))
    assert rows[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_scale_is_frozen_at_the_value_of_the_model(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    clipkit.train(recipe({"loss.logit_scale": "freeze", "train.ema": 0.5}))
    start, end = clipkit.load(tiny_clip), clipkit.load(tmp_path / "run")
    assert torch.equal(start.logit_scale, end.logit_scale)
    assert not torch.equal(start.image.head.weight, end.image.head.weight)  # type: ignore[arg-type]


def test_bias_is_fixed_for_the_sigmoid_loss(recipe: Build, tmp_path: Path) -> None:
    siglip = str(build("siglip", tmp_path / "siglip"))
    plan = make_plan(recipe({"model.name": siglip, "loss.name": "sigmoid", "loss.logit_bias": -12.5}))
    assert plan.model.logit_bias is not None
    assert (plan.model.logit_bias.item(), plan.model.logit_bias.requires_grad) == (-12.5, False)
    assert plan.model.logit_scale.requires_grad
    assert recipe({"loss.logit_scale": "1e2"}).loss.logit_scale == 100.0  # as YAML 1.1 reads it


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"loss.logit_scale": "fix"}, ("loss.logit_scale", "'fix'")),
        ({"loss.logit_scale": -1}, ("loss.logit_scale", "-1")),
        ({"loss.logit_scale": 100, "loss.name": "triplet"}, ("loss.logit_scale", "triplet")),
        ({"loss.logit_bias": 0}, ("loss.logit_bias", "infonce")),
        (
            {"objective": "views", "views": {"image": {"loss": {"name": "ntxent", "logit_scale": 10}}}},
            ("views.image.loss.logit_scale",),
        ),
    ],
)
def test_values_that_do_not_apply_are_refused(
    recipe: Build, changes: dict[str, object], shown: tuple[str, ...]
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(changes)
    assert all(part in str(caught.value) for part in shown)


def test_run_with_nothing_to_train_is_refused(recipe: Build) -> None:
    frozen = {"model.image.tune": "frozen", "model.text.tune": "frozen", "loss.logit_scale": "freeze"}
    with pytest.raises(RecipeError, match="no trainable parameter"):
        make_plan(recipe(frozen))
