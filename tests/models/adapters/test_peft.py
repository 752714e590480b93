"""Adapters of clipkit in PEFT, and adapters of PEFT in clipkit. PEFT is not a dependency."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import clipkit
from clipkit.models.adapters.files import save_adapters
from clipkit.recipe import LoraRecipe, ModelRecipe
from tests.models.adapters.round_trip import METHODS, adapt, features, opened, train
from tests.models.families import FAMILIES, build

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.peer


def with_peft(base: Path, folder: Path) -> Any:
    model_class = getattr(transformers, type(opened(ModelRecipe(name=str(base))).backend.native).__name__)  # type: ignore[attr-defined]
    return peft.PeftModel.from_pretrained(model_class.from_pretrained(base), folder)


@pytest.mark.parametrize("methods", [*METHODS, ("lora", "lora"), ("full", "lora")])
@pytest.mark.parametrize("name", FAMILIES)
def test_peft_opens_adapters_of_clipkit(
    name: str, methods: tuple[str, str], tmp_path: Path, images: list[Path]
) -> None:
    recipe = ModelRecipe(name=str(build(name, tmp_path / "base")))
    model = adapt(opened(recipe), *methods, LoraRecipe(rank=3, alpha=5, targets="all"))
    train(model)
    save_adapters(model, tmp_path / "adapter", recipe)
    merged = with_peft(tmp_path / "base", tmp_path / "adapter").merge_and_unload()
    again = opened(recipe)
    again.backend.native.load_state_dict(merged.state_dict())  # type: ignore[attr-defined]
    for found, expected in zip(features(again, images)[:2], features(model, images)[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if hasattr(merged, "logit_scale"):
        torch.testing.assert_close(merged.logit_scale.detach().reshape(()), model.logit_scale.detach())
    else:
        torch.testing.assert_close(merged.temperature.detach(), torch.exp(-model.logit_scale.detach()))


OPTIONS = [
    {},
    {"use_dora": True},
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 9}},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_clipkit_opens_theirs(options: dict[str, Any], tiny_clip: Path, tmp_path: Path) -> None:
    native = transformers.CLIPModel.from_pretrained(tiny_clip)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], r=2, lora_alpha=6, **options)
    wrapped = peft.get_peft_model(native, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "peft")
    found = clipkit.load(tmp_path / "peft", device="cpu")
    merged = wrapped.merge_and_unload().state_dict()
    for name, value in found.backend.native.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradients_equal_those_of_peft(method: str, tiny_clip: Path, tmp_path: Path) -> None:
    recipe = ModelRecipe(name=str(tiny_clip))
    model = adapt(opened(recipe), method, "frozen", LoraRecipe(rank=2, alpha=6, targets="all"))
    train(model)
    save_adapters(model, tmp_path / "adapter", recipe)
    theirs = peft.PeftModel.from_pretrained(
        transformers.CLIPModel.from_pretrained(tiny_clip), tmp_path / "adapter", is_trainable=True
    ).double()
    model.double()
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    native = theirs.base_model.model
    native.visual_projection(native.vision_model(pixel_values=pixels).pooler_output).pow(2).sum().backward()
    model.image({"pixel_values": pixels}).pow(2).sum().backward()
    ours = {
        f"{name.split('.adapter.')[0].removeprefix('trunk.native.')}.{name.rpartition('.')[2]}": parameter.grad
        for name, parameter in model.image.named_parameters()
        if parameter.grad is not None
    }
    compared = 0
    for name, parameter in native.named_parameters():
        if parameter.grad is not None and "vision" in name:
            layer, _, kind = name.removeprefix("vision_model.").partition(".lora_")
            key = "magnitude" if kind.startswith("magnitude") else f"lora_{kind[0]}"
            torch.testing.assert_close(ours[f"{layer}.{key}"], parameter.grad, rtol=1e-6, atol=1e-9)
            compared += 1
    assert compared == len(ours)
