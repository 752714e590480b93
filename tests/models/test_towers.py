"""Which parameters learn."""

from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, Tower
from clipkit.models.towers import TRUNK_FEATURES
from tests.models.test_composed import model_of


@pytest.fixture
def clip(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(str(tiny_clip))


def learning(tower: Tower) -> set[str]:
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def test_full_is_everything(clip: DualEncoder) -> None:
    clip.image.tune("full")
    assert learning(clip.image) == {name for name, _ in clip.image.named_parameters()}


def test_frozen_is_nothing_but_a_new_projection(clip: DualEncoder) -> None:
    clip.text.tune("frozen")
    assert learning(clip.text) == set()
    assert clip.text.trunk_is_frozen
    new = model_of().text
    new.tune("frozen")
    assert learning(new) == {"head.0.weight", "head.0.bias", "head.1.weight"}


def test_head_is_the_projection(clip: DualEncoder) -> None:
    clip.image.tune("head")
    assert learning(clip.image) == {"head.weight"}


def test_last_blocks_take_what_comes_after_them(clip: DualEncoder) -> None:
    clip.image.tune("last:1")
    assert learning(clip.image) >= {"head.weight", "trunk.native.post_layernorm.weight"}
    layers = {name.split(".")[4] for name in learning(clip.image) if "layers" in name}
    assert layers == {"2"}
    assert not any("embeddings" in name for name in learning(clip.image))
    clip.image.tune("last:3")
    assert any("embeddings" in name for name in learning(clip.image))
    with pytest.raises(ModelError, match=r"last:4 asks for more blocks than the tower has \(3\)"):
        clip.image.tune("last:4")


def test_last_blocks_of_a_timm_tower() -> None:
    tower = model_of().image
    tower.tune("last:1")
    names = learning(tower)
    assert any("head" in name or "norm" in name for name in names)
    assert any(".blocks." in name for name in names)
    assert not any("stem" in name for name in names)


def test_stored_trunk_features_stand_for_the_inputs(clip: DualEncoder) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    stored = clip.image.trunk(pixel_values=pixels)
    torch.testing.assert_close(clip.image({TRUNK_FEATURES: stored}), clip.image({"pixel_values": pixels}))
