"""Round trip of a model with adapters: through a folder of adapters, and through a merged model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import clipkit
from clipkit.models import DualEncoder, Tower, compose
from clipkit.models.adapters.attach import adapted_layers, is_of_adapter
from clipkit.models.adapters.files import save_adapters
from clipkit.models.adapters.linear_layers import linear_layers
from clipkit.models.preprocess import stack_inputs
from clipkit.models.tuning import tune
from clipkit.recipe import LoraRecipe, ModelRecipe
from tests.models.families import SENTENCES

METHODS = [("lora", "dora"), ("dora", "lora")]
TOLERANCE = 1e-5
ALL = LoraRecipe(rank=3, alpha=5, targets="all")


def slow_but_first(cases: list[Any]) -> list[Any]:
    """Return parameters of a test, of which only the first is tested by the quick suite."""
    return [case if case == cases[0] else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def opened(recipe: ModelRecipe) -> DualEncoder:
    torch.manual_seed(0)
    return compose(recipe) if recipe.name is None else clipkit.load(recipe.name, device="cpu")


def adapt(model: DualEncoder, image: str, text: str, settings: LoraRecipe | None = None) -> DualEncoder:
    """Give the towers adapters, if they have linear layers."""
    for method, tower in zip((image, text), (model.image, model.text), strict=True):
        tune(tower, method if linear_layers(tower) else "frozen", settings)
    return model


def train(model: DualEncoder) -> None:
    """Change everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def features(model: DualEncoder, images: list[Path]) -> tuple[Tensor, Tensor, Tensor]:
    return model.encode_image(images), model.encode_text(SENTENCES), model.logit_scale.detach().clone()


def trained(tower: Tower) -> set[str]:
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def check_start(model: DualEncoder, images: list[Path], before: tuple[Tensor, ...]) -> None:
    """Check that adapters change nothing at the start, and that nothing but them has gradients."""
    for found, expected in zip(features(model, images), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    inputs = {
        "image": model.image.ready(stack_inputs([model.image.preprocess(Image.open(images[0]).convert("RGB"))])),
        "text": model.text.tokenize(SENTENCES),
    }
    for side, tower in model.sides.items():
        if trained(tower):
            tower(inputs[side]).square().sum().backward()
        learning = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
        assert learning == trained(tower)
        assert all(is_of_adapter(name) or (name.startswith("head.") and tower.head_is_new) for name in learning)


def check_round_trip(recipe: ModelRecipe, folder: Path, images: list[Path], methods: tuple[str, str]) -> None:
    model = opened(recipe)
    before = features(model, images)
    adapt(model, *methods, ALL)
    check_start(model, images, before)
    train(model)
    expected = features(model, images)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(expected[1:], before[1:], strict=True))
    model.save(folder / "whole")
    save_adapters(model, folder / "adapter", recipe)
    for name in ("whole", "adapter"):
        again = clipkit.load(folder / name, device="cpu")
        assert not any(True for _ in adapted_layers(again))
        for found, value in zip(features(again, images), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=TOLERANCE)
    for found, value in zip(features(model, images), expected, strict=True):  # saving changed nothing
        assert torch.equal(found, value)
