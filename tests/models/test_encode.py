"""Encoding as on an accelerator, tested on the CPU: the same features as one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.models import DualEncoder, decoding, encode
from clipkit.models.encode import encode_images


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(tiny_clip)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU like an accelerator with many images and cores."""
    monkeypatch.setattr(encode, "is_accelerator", lambda device: True)
    for module in (encode, decoding):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(decoding, "_workers", lambda: 2)


@pytest.fixture
def many(tmp_path: Path) -> list[Any]:
    """Images of several sizes and kinds: files, arrays, a PIL image."""
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 256, (30 + 3 * n, 90 - 2 * n, 3), dtype=np.uint8) for n in range(21)]
    several: list[Any] = []
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{number}.jpg")
        several.append([tmp_path / f"{number}.jpg", array, Image.fromarray(array)][number % 3])
    return several


def encoded(model: DualEncoder, images: list[Any], **options: Any) -> torch.Tensor:
    return encode_images(model.image, images, model.image, None, model.device, **options)


@pytest.mark.usefixtures("accelerator")
def test_images_in_processes_have_the_same_features(
    model: DualEncoder, many: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_CHUNK", 3)
    processes = []
    monkeypatch.setattr(decoding, "in_processes", lambda *a: processes.append(a) or original(*a))
    found = encode_images(model.image, many, model.image, 8, model.device)
    assert processes
    monkeypatch.undo()
    torch.testing.assert_close(found, encoded(model, many), rtol=0, atol=0)


original = decoding.in_processes
