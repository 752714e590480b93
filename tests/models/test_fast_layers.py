"""Faster layers for accelerators: same values as the libraries' layers, here forced on a CPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import clipkit
from clipkit.models import fast_layers
from clipkit.models.fast_layers import PackedSelfAttention, PatchConvolution, use_fast_layers
from clipkit.models.fingerprint import tower_fingerprint


@pytest.fixture
def fast_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "is_accelerator", lambda device: True)


def gradients(layer: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), list(layer.parameters())))


@pytest.mark.usefixtures("fast_on_cpu")
@pytest.mark.parametrize(("kernel", "size"), [((16, 16), (64, 48)), ((16, 16), (50, 70)), ((4, 2), (9, 9))])
@pytest.mark.parametrize("bias", [True, False])
def test_patch_convolution_equals_the_convolution(kernel: tuple[int, int], size: tuple[int, int], bias: bool) -> None:
    layer = nn.Conv2d(3, 8, kernel, stride=kernel, bias=bias).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = layer(images)
    slow = gradients(layer, expected)
    names = list(layer.state_dict())
    use_fast_layers(nn.Sequential(layer))
    assert isinstance(layer, PatchConvolution)
    actual = layer(images)
    assert list(layer.state_dict()) == names
    torch.testing.assert_close(actual, expected)
    for one, two in zip(gradients(layer, actual), slow, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("fast_on_cpu")
@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_equals_the_attention(causal: bool) -> None:
    layer = nn.MultiheadAttention(24, 3, batch_first=True).double()
    states = torch.randn(4, 7, 24, dtype=torch.float64)
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1) if causal else None
    expected = layer(states, states, states, need_weights=False, attn_mask=mask)[0]
    slow = gradients(layer, expected)
    use_fast_layers(nn.Sequential(layer))
    assert isinstance(layer, PackedSelfAttention)
    actual, weights = layer(states, states, states, need_weights=False, attn_mask=mask)
    assert weights is None
    torch.testing.assert_close(actual, expected)
    for one, two in zip(gradients(layer, actual), slow, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("fast_on_cpu")
def test_attention_falls_back_for_what_the_fast_form_lacks() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    states, other = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    expected = [
        layer(states, other, other)[0],
        layer(states, states, states)[1],
        layer(states, states, states, padded)[0],
    ]
    use_fast_layers(nn.Sequential(layer))
    actual = [
        layer(states, other, other)[0],
        layer(states, states, states)[1],
        layer(states, states, states, padded)[0],
    ]
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 7, stride=2),
        nn.Conv2d(3, 8, 4, stride=4, padding=1),
        nn.Conv2d(8, 8, 2, stride=2),
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, kdim=4, batch_first=True),
        nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True),
    ],
)
def test_other_layers_keep_their_class(layer: nn.Module) -> None:
    kind = type(layer)
    use_fast_layers(nn.Sequential(layer))
    assert type(layer) is kind


def test_layers_on_a_cpu_keep_their_bits() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.MultiheadAttention(8, 2, batch_first=True))
    images, states = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8)
    expected = [layers[0](images), layers[1](states, states, states, need_weights=False)[0]]
    use_fast_layers(layers)
    assert torch.equal(layers[0](images), expected[0])
    assert torch.equal(layers[1](states, states, states, need_weights=False)[0], expected[1])


def test_fingerprint_does_not_depend_on_the_form(tiny_clip: Path) -> None:
    """Features in the cache, and runs with a teacher, stay valid."""
    tower = clipkit.load(tiny_clip, device="cpu").image
    (patches,) = (layer for layer in tower.modules() if isinstance(layer, PatchConvolution))
    before = tower_fingerprint(tower)
    patches.__class__ = nn.Conv2d
    assert tower_fingerprint(tower) == before
