"""Fused batch normalizations: same features, and only where the convolution runs directly before them."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from clipkit.models import encode
from clipkit.models.encode import encode_images, trunk_features
from clipkit.models.fused_norms import with_fused_norms
from clipkit.models.timm_towers import timm_tower
from clipkit.models.towers import ImageTower
from clipkit.recipe import ImageTowerRecipe


def tower_of(native: nn.Module, size: int = 32) -> ImageTower:
    """A tower around a module, with random statistics of its batch normalizations."""
    tower = timm_tower(
        ImageTowerRecipe(name="timm:test_vit", pretrained=False, image_size=size), lambda width: nn.Linear(width, 4)
    )
    tower.trunk = Trunk(native)
    generator = torch.Generator().manual_seed(0)
    for norm in norms(tower):
        for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            assert values is not None
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return tower.eval()


def norms(tower: ImageTower) -> list[nn.BatchNorm2d]:
    return [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]


class Trunk(nn.Module):
    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.native(pixel_values)


class NormAfterRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.convolution(pixels).relu()).mean(dim=(2, 3))


class NormByHand(NormAfterRelu):
    def forward(self, pixels: Tensor) -> Tensor:
        normalized = self.convolution(pixels) * self.norm.weight[:, None, None]
        return normalized.mean(dim=(2, 3))


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "mobilenetv3_small_050"]
)
def test_fused_features_are_those_of_the_tower(name: str) -> None:
    tower = tower_of(timm.create_model(name, num_classes=0))
    before = {name: values.clone() for name, values in tower.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = tower.double().trunk(pixel_values=pixels.double())
        fused = with_fused_norms(tower.float())
        result = fused.trunk(pixel_values=pixels)
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (fused is tower) == (not norms(tower))
    assert len(norms(fused)) < max(1, len(norms(tower)) / 4)
    assert all(torch.equal(values, before[name]) for name, values in tower.state_dict().items())


@pytest.mark.parametrize("native", [NormAfterRelu, NormByHand])
def test_a_norm_that_does_not_follow_its_convolution_is_not_fused(native: type[nn.Module]) -> None:
    tower = tower_of(native())
    assert with_fused_norms(tower) is tower


def test_a_norm_that_learns_is_not_fused() -> None:
    tower = tower_of(timm.create_model("test_efficientnet", num_classes=0))
    assert not norms(with_fused_norms(tower))
    tower.train()
    assert with_fused_norms(tower) is tower


@pytest.mark.parametrize("threads", [1, 2])
def test_many_images_are_encoded_with_fused_norms(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tower_of(timm.create_model("test_efficientnet", num_classes=0))
    images = list(np.random.default_rng(0).integers(256, size=(8, 32, 32, 3), dtype=np.uint8))
    used: list[int] = []

    def through(tower: ImageTower, inputs: dict[str, Tensor]) -> Tensor:
        used.append(len(norms(tower)))
        return trunk_features(tower, inputs)

    before, count = torch.get_num_threads(), len(norms(tower))
    torch.set_num_threads(threads)
    try:
        plain = encode_images(tower, images, through, None, torch.device("cpu"))
        assert set(used) == {count}
        used.clear()
        monkeypatch.setattr(encode, "_FUSED_FROM", 8)
        fused = encode_images(tower, images, through, None, torch.device("cpu"))
        assert set(used) == {0}
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
