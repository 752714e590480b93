"""How many pairs fit."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import clipkit
from clipkit.training import micro_batch
from clipkit.training.micro_batch import available_memory, find_micro_batch_size
from clipkit.training.processes import Processes


def test_bytes_grow_with_the_batch_and_parameters_do_not_count(tiny_clip: Path) -> None:
    model, accelerator = clipkit.load(tiny_clip, device="cpu"), Accelerator(cpu=True)
    needed = [
        micro_batch._graph_bytes(model.image, {"pixel_values": torch.zeros(n, 3, 32, 32)}, accelerator)
        for n in (2, 4, 8)
    ]
    # Twice the pictures, twice the bytes: nothing that belongs to the model is in it.
    assert needed[1] / needed[0] == pytest.approx(2, rel=0.05)
    assert needed[2] / needed[1] == pytest.approx(2, rel=0.05)
    model.image.tune("frozen")
    frozen = micro_batch._graph_bytes(model.image, {"pixel_values": torch.zeros(8, 3, 32, 32)}, accelerator)
    assert frozen < 0.2 * needed[2]


def test_a_known_layer_keeps_what_it_should() -> None:
    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(50, 100))

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return (inputs["x"] @ self.weight).sigmoid()

    found = micro_batch._graph_bytes(Known(), {"x": torch.zeros(8, 50)}, Accelerator(cpu=True))  # type: ignore[arg-type]
    # The input of the product and the output of the sigmoid, and the input once more as the inputs themselves.
    assert found == 4 * 8 * (50 + 100 + 50)


def test_half_of_the_memory_is_filled_and_never_more_than_there_are_rows(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, accelerator = clipkit.load(tiny_clip, device="cpu"), Accelerator(cpu=True)
    image = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    text = model.text.tokenize(["red square " * 40] * 2)
    pair = max(micro_batch._graph_bytes(t, i, accelerator) for t, i in ((model.image, image), (model.text, text))) // 2

    def found(memory: int) -> int:
        monkeypatch.setattr(micro_batch, "available_memory", lambda: memory)
        return find_micro_batch_size(model, image, text, 64, Processes(accelerator), accelerator)

    assert found(40 * pair) == 20
    assert found(10000 * pair) == 64
    assert found(0) == 1


def test_there_is_memory() -> None:
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total
