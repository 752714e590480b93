"""Tuning methods: which parameters are trained."""

from pathlib import Path

import pytest

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, Tower
from clipkit.models.tuning import METHODS, tune
from clipkit.recipe.model import TUNE_METHODS, ImageTowerRecipe, parse_tune
from tests.models.test_composed import model_of


@pytest.fixture
def clip(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(str(tiny_clip))


def trained(tower: Tower) -> set[str]:
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def test_every_method_of_a_recipe_has_code() -> None:
    assert list(METHODS) == list(TUNE_METHODS)


def test_full_trains_everything(clip: DualEncoder) -> None:
    tune(clip.image, "full")
    assert trained(clip.image) == {name for name, _ in clip.image.named_parameters()}


def test_frozen_trains_nothing_but_a_new_projection(clip: DualEncoder) -> None:
    tune(clip.text, "frozen")
    assert trained(clip.text) == set()
    assert clip.text.trunk_is_frozen
    new = model_of().text
    tune(new, "frozen")
    assert trained(new) == {"head.0.weight", "head.0.bias", "head.1.weight"}


def test_head_trains_the_projection(clip: DualEncoder) -> None:
    tune(clip.image, "head")
    assert trained(clip.image) == {"head.weight"}


def test_last_trains_blocks_and_the_norm_after_them(clip: DualEncoder) -> None:
    tune(clip.image, "last:1")
    assert trained(clip.image) >= {"head.weight", "trunk.native.post_layernorm.weight"}
    layers = {name.split(".")[4] for name in trained(clip.image) if "layers" in name}
    assert layers == {"2"}
    assert not any("embeddings" in name for name in trained(clip.image))
    tune(clip.image, "last:3")
    assert any("embeddings" in name for name in trained(clip.image))
    with pytest.raises(ModelError, match=r"last:4 .* 3 blocks"):
        tune(clip.image, "last:4")


def test_last_trains_the_end_of_a_timm_tower() -> None:
    tower = model_of().image
    tune(tower, "last:1")
    names = trained(tower)
    assert any("head" in name or "norm" in name for name in names)
    assert any(".blocks." in name for name in names)
    assert not any("stem" in name for name in names)


@pytest.mark.parametrize("method", ["half", "last", "last:0", "last:N", "last:-1", "full:1", "frozen:N", ""])
def test_recipe_refuses_unknown_methods(method: str) -> None:
    with pytest.raises(ValueError, match=f"'{method}' is not a tuning method.*full.*last:N.*head.*frozen"):
        ImageTowerRecipe(tune=method)


def test_parse_tune_splits_off_the_number() -> None:
    assert parse_tune("last:12") == ("last:N", 12)
    assert parse_tune("head") == ("head", 0)
