"""Trying other settings on a pretrained model, and when they count as better."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.training.guards import pretrained
from tests.conftest import draw
from tests.models.families import build


@pytest.mark.parametrize(("current", "other"), [("quick_gelu", "gelu"), ("gelu", "quick_gelu")])
def test_activation_is_replaced_and_restored(current: str, other: str, tmp_path: Path) -> None:
    build("clip", tmp_path / "clip")
    models = {}
    for activation in (current, other):
        shutil.copytree(tmp_path / "clip", tmp_path / activation)
        config = json.loads((tmp_path / activation / "config.json").read_text())
        for side in ("text_config", "vision_config"):
            config[side]["hidden_act"] = activation
        (tmp_path / activation / "config.json").write_text(json.dumps(config))
        models[activation] = clipkit.load(tmp_path / activation)
    image, caption = draw("red", "cross"), "a red cross"
    before, wanted = (models[name].encode_image(image) for name in (current, other))
    assert (before - wanted).abs().max() > 1e-6
    with pretrained._other_activation(models[current]) as names:
        assert names == (("QuickGELU", "GELU") if current == "quick_gelu" else ("GELU", "QuickGELU"))
        torch.testing.assert_close(models[current].encode_image(image), wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            models[current].encode_text(caption), models[other].encode_text(caption), atol=1e-6, rtol=0
        )
    assert torch.equal(models[current].encode_image(image), before)


def test_better_means_more_than_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    current = pretrained._Losses(2 + torch.rand(32, generator=generator), matched=0.3)
    noise = torch.randn(32, generator=generator)

    def is_better(gain: float, spread: float, matched: float = 0.5) -> bool:
        return pretrained._is_better(pretrained._Losses(current.each - gain - spread * noise, matched), current)

    assert is_better(0.5, 0.2)
    assert not is_better(0.05, 0.01)  # sure, but too little to matter
    assert not is_better(0.3, 2.0)  # much, but not sure
    assert not is_better(0.5, 0.2, matched=0.06)  # nothing that it knows
    assert not is_better(-0.5, 0.2)
