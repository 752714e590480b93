"""How many pairs fit."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import clipkit
from clipkit.models.memory import graph_bytes
from clipkit.processes import Processes
from clipkit.training import micro_batch
from clipkit.training.micro_batch import available_memory, find_micro_batch_size


def test_half_of_the_memory_is_filled_and_never_more_than_there_are_rows(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, accelerator = clipkit.load(tiny_clip, device="cpu"), Accelerator(cpu=True)
    image = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    text = model.text.tokenize(["red square " * 40] * 2)
    encoded = [(model.image, image), (model.text, text)]
    pair = sum(graph_bytes(tower, inputs) for tower, inputs in encoded) // 2

    def found(memory: int) -> int:
        monkeypatch.setattr(micro_batch, "available_memory", lambda: memory)
        return find_micro_batch_size(model, encoded, 64, Processes(accelerator), accelerator)

    assert found(40 * pair) == 20
    assert found(10000 * pair) == 64
    assert found(0) == 1


def test_there_is_memory() -> None:
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total
