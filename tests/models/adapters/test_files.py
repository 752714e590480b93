"""Folders with adapters: their layout, their base, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipkit
from clipkit.errors import ModelError
from clipkit.models.adapters.files import CONFIG, IDENTITY, WEIGHTS, save_adapters
from clipkit.recipe import LoraRecipe, ModelRecipe
from tests.models.adapters.round_trip import adapt, opened, train


@pytest.fixture
def base(tiny_clip: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_clip, tmp_path / "base")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    recipe = ModelRecipe(name=str(base))
    model = adapt(opened(recipe), "lora", "frozen", LoraRecipe(rank=2, alpha=6, targets=["q"], last=1))
    train(model)
    save_adapters(model, tmp_path / "adapter", recipe)
    return tmp_path / "adapter"


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        clipkit.load(folder, device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_files_are_small_and_have_the_names_of_peft(folder: Path, base: Path) -> None:
    layer = "base_model.model.vision_model.encoder.layers.2.self_attn.q_proj"
    tensors = load_file(folder / WEIGHTS)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        f"{layer}.lora_A.weight": (2, 32),
        f"{layer}.lora_B.weight": (32, 2),
        "base_model.model.logit_scale": (),
    }
    config = json.loads((folder / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (2, 6, False)
    assert config["target_modules"] == [layer.removeprefix("base_model.model.")]
    assert config["base_model_name_or_path"] == str(base)
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS, IDENTITY}


def test_a_missing_base_is_named_and_can_be_elsewhere(folder: Path, base: Path) -> None:
    expected = clipkit.load(folder, device="cpu").state_dict()
    moved = base.rename(base.parent / "moved")
    assert str(base) in (message := refused(folder))
    assert "base_model_name_or_path" in message
    change(folder / CONFIG, base_model_name_or_path=str(moved))
    again = clipkit.load(folder, device="cpu")
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert again.name == str(folder)


def test_another_base_is_refused(folder: Path, base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["text_model.final_layer_norm.bias"] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert str(base) in refused(folder)


def test_the_scale_of_the_base_does_not_matter(folder: Path, base: Path) -> None:
    expected = clipkit.load(folder, device="cpu").logit_scale.item()
    tensors = load_file(base / "model.safetensors")
    tensors["logit_scale"] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert clipkit.load(folder, device="cpu").logit_scale.item() == expected


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("base_model.model.vision_model.encoder.layers.2.self_attn.q_proj.lora_B.weight", None, "q_proj"),
        ("base_model.model.vision_model.encoder.layers.2.self_attn.q_proj.lora_A.weight", torch.ones(2, 9), "q_proj"),
        ("base_model.model.vision_model.nothing.lora_A.weight", torch.ones(2, 9), "vision_model.nothing"),
        ("base_model.model.vision_model.nothing.weight", torch.ones(2, 9), "vision_model.nothing"),
    ],
)
def test_weights_that_do_not_fit_are_named(name: str, value: torch.Tensor | None, named: str, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS) | ({} if value is None else {name: value})
    if value is None:
        del tensors[name]
    save_file(tensors, folder / WEIGHTS)
    assert named in refused(folder)


def test_damaged_and_other_adapters_are_refused(folder: Path) -> None:
    change(folder / CONFIG, peft_type="IA3")
    assert "IA3" in refused(folder)
    change(folder / CONFIG, peft_type="LORA", base_model_name_or_path=str(folder))
    assert "adapter_config.json" in refused(folder)
    (folder / CONFIG).write_text("[1]")
    assert CONFIG in refused(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    assert CONFIG in refused(folder)


def test_adapters_of_adapters(folder: Path, tmp_path: Path) -> None:
    recipe = ModelRecipe(name=str(folder))
    model = adapt(opened(recipe), "frozen", "dora")
    train(model)
    save_adapters(model, tmp_path / "second", recipe)
    with torch.no_grad():
        expected = model.text(model.text.tokenize(["a red square"]))
        found = clipkit.load(tmp_path / "second", device="cpu").text(model.text.tokenize(["a red square"]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
