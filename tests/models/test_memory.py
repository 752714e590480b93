"""Memory that towers need."""

from pathlib import Path

import pytest
import torch
from torch import nn

import clipkit
from clipkit.models.memory import graph_bytes, widest_layer_bytes
from clipkit.models.tuning import tune
from clipkit.recipe import LoraRecipe


def test_graph_bytes_grow_with_the_batch_and_exclude_parameters(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu")
    needed = [graph_bytes(model.image, {"pixel_values": torch.zeros(n, 3, 32, 32)}) for n in (2, 4, 8)]
    # Twice the images, twice the bytes: nothing that belongs to the model is in it.
    assert needed[1] / needed[0] == pytest.approx(2, rel=0.05)
    assert needed[2] / needed[1] == pytest.approx(2, rel=0.05)
    tune(model.image, "frozen")
    frozen = graph_bytes(model.image, {"pixel_values": torch.zeros(8, 3, 32, 32)})
    assert frozen < 0.2 * needed[2]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_graph_bytes_exclude_what_adapters_compute(method: str, tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu")
    tune(model.image, method, LoraRecipe(targets="all"))
    needed = [graph_bytes(model.image, {"pixel_values": torch.zeros(n, 3, 32, 32)}) for n in (2, 4, 8)]
    assert needed[2] - needed[1] == 2 * (needed[1] - needed[0])
    assert needed[1] / needed[0] == pytest.approx(2, rel=0.05)


def test_graph_bytes_of_a_known_layer() -> None:
    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(50, 100))

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return (inputs["x"] @ self.weight).sigmoid()

    found = graph_bytes(Known(), {"x": torch.zeros(8, 50)})  # type: ignore[arg-type]
    # The input of the product and the output of the sigmoid, and the input once more as the inputs themselves.
    assert found == 4 * 8 * (50 + 100 + 50)


def test_widest_layer_bytes() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.layers(inputs["x"])

    # In and out of the ReLU, and the inputs themselves.
    assert widest_layer_bytes(Towers(), {"x": torch.zeros(3, 4)}) == 4 * 3 * (100 + 100 + 4)
