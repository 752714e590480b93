"""Choice of the layers that get adapters, trained parameters, and layers that read their weights themselves."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, Tower, compose
from clipkit.models.adapters import attach
from clipkit.models.adapters.attach import adapted_layers, is_of_adapter, merged
from clipkit.models.adapters.linear_layers import linear_layers
from clipkit.models.compiled import repeated_blocks
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.models.tuning import tune
from clipkit.recipe import LoraRecipe, ModelRecipe
from tests.models.adapters.round_trip import train, trained


@pytest.fixture
def clip(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(tiny_clip, device="cpu")


def image_tower(name: str) -> Tower:
    return compose(ModelRecipe.model_validate({"image": {"name": f"timm:{name}", "pretrained": False}})).image


def adapted(tower: Tower) -> set[str]:
    return {name.split(f".{attach.ATTRIBUTE}.")[0] for name in trained(tower) if is_of_adapter(name)}


def test_default_is_queries_keys_and_values_of_all_blocks(clip: DualEncoder) -> None:
    tune(clip.image, "lora")
    layers = [f"trunk.native.encoder.layers.{n}.self_attn.{part}_proj" for n in range(3) for part in "qkv"]
    assert adapted(clip.image) == set(layers)
    assert trained(clip.image) == {f"{layer}.adapter.parts.{layer[-6]}.lora_{m}" for layer in layers for m in "AB"}
    assert not clip.image.trunk_is_frozen


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"targets": ["v"], "last": 2}, {"1.self_attn.v_proj", "2.self_attn.v_proj"}),
        ({"targets": ["out", "mlp"], "last": 1}, {"2.self_attn.out_proj", "2.mlp.fc1", "2.mlp.fc2"}),
    ],
)
def test_targets_and_last(clip: DualEncoder, settings: dict[str, Any], layers: set[str]) -> None:
    tune(clip.text, "dora", LoraRecipe(**settings))
    assert {name.removeprefix("trunk.native.encoder.layers.") for name in adapted(clip.text)} == layers


def test_parameters_of_adapters_belong_to_the_blocks_of_their_layers(clip: DualEncoder) -> None:
    before = [list(block) for block in clip.image.blocks]
    tune(clip.image, "dora", LoraRecipe(targets="all"))
    in_trunk = {name.removeprefix("trunk.") for name in trained(clip.image)}
    for number, (old, new) in enumerate(zip(before, clip.image.blocks, strict=True)):
        added = set(new) - set(old)
        assert added == {name for name in in_trunk if f".layers.{number}." in name}
    assert len(in_trunk) == 3 * 6 * 3


def test_slices_of_a_fused_weight(clip: DualEncoder) -> None:
    tower = image_tower("test_vit")
    assert {layer.roles for layer in linear_layers(tower)} == {("q", "k", "v"), ("out",), ("mlp",)}
    tune(tower, "lora", LoraRecipe(targets=["q", "v"]))
    train(tower)  # type: ignore[arg-type]
    for layer, weight, _ in adapted_layers(tower):
        changed: Any = layer.weight
        same = [torch.equal(a, b) for a, b in zip(changed.chunk(3), weight.chunk(3), strict=True)]
        assert same == [False, True, False]


def test_a_convolutional_tower_is_adapted_in_its_linear_layers() -> None:
    tower = image_tower("test_convnext")
    tune(tower, "lora")
    assert adapted(tower)
    with pytest.raises(ModelError, match=r"targets: \['q'\].*mlp.*all"):
        tune(image_tower("test_convnext"), "lora", LoraRecipe(targets=["q"]))
    with pytest.raises(ModelError, match="lora.*no.*linear|linear layers.*none"):
        tune(image_tower("test_resnet"), "lora")


def test_more_blocks_than_there_are_is_an_error(clip: DualEncoder) -> None:
    with pytest.raises(ModelError, match=r"lora.last: 4 .* 3 blocks"):
        tune(clip.image, "lora", LoraRecipe(last=4))


@torch.no_grad()
def test_attention_computes_its_weight_once_per_pass() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    weight = attention.in_proj_weight
    attention.__class__ = attach._adapted(nn.MultiheadAttention, "in_proj_weight")
    calls = []

    class Doubling(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return 2 * weight

    attention.adapter = Doubling()
    found = attention(x, x, x, need_weights=False)[0]
    assert len(calls) == 1
    assert torch.equal(attention.in_proj_weight, 2 * weight)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    plain.load_state_dict({k: v for k, v in attention.state_dict().items() if "adapter" not in k})
    plain.in_proj_weight.mul_(2)
    torch.testing.assert_close(found, plain(x, x, x, need_weights=False)[0])


def test_blocks_keep_one_class_so_compilers_share_their_code(clip: DualEncoder) -> None:
    tune(clip.image, "lora")
    assert len(repeated_blocks(clip.image.trunk)) == 3
    assert len({type(layer) for layer, *_ in adapted_layers(clip.image)}) == 1


@torch.no_grad()
def test_merged_is_undone_also_after_an_error_and_in_a_copy(clip: DualEncoder) -> None:
    plain = set(clip.state_dict())
    tune(clip.image, "dora")
    tune(clip.text, "lora", LoraRecipe(dropout=0.5))
    train(clip)
    pixels = torch.randn(2, 3, 32, 32)
    before, weights = clip.image({"pixel_values": pixels}), {k: v.clone() for k, v in clip.state_dict().items()}
    with suppress(ValueError), merged(clip):
        assert set(clip.state_dict()) == plain
        torch.testing.assert_close(clip.image({"pixel_values": pixels}), before, rtol=0, atol=1e-5)
        raise ValueError
    for model in (clip, copy.deepcopy(clip)):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert torch.equal(model.image({"pixel_values": pixels}), before)


def test_the_fingerprint_sees_adapters(clip: DualEncoder) -> None:
    tune(clip.image, "lora")
    start = tower_fingerprint(clip.image)
    train(clip)
    assert tower_fingerprint(clip.image) != start
