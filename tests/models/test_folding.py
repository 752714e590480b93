from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.errors import ModelError
from clipkit.models.folding import folded
from clipkit.models.layers import set_coordinates
from tests.models.test_layers import model_of

LAYERS = ({"layers": ["output", "probabilities"]}, {"layers": ["output", "mean:0"]})


def test_folded_linear_projection_gives_the_same_features() -> None:
    model = model_of(*LAYERS, start="cca").eval()
    trunk, head = model.text.trunk, model.text.head
    set_coordinates(trunk, torch.randn(64), torch.randn(64, 64) / 8)
    inputs = model.text.tokenize(["a dog", "two dogs run in the snow"])
    one = folded(model.text)
    assert one.head.weight.shape == (24, 64)
    with torch.no_grad():
        wide = torch.cat(trunk.parts(**inputs), dim=1)
        torch.testing.assert_close(one.trunk(**inputs), wide)
        torch.testing.assert_close(one(inputs), model.text(inputs), rtol=0, atol=1e-6)
    assert model.text.trunk is trunk  # the tower itself is unchanged
    assert model.text.head is head
    assert trunk.coordinates is not None


def test_residual_projection_is_not_folded() -> None:
    model = model_of(*LAYERS, start="cca", projection="residual")
    set_coordinates(model.text.trunk, torch.zeros(64), torch.randn(64, 64))
    assert folded(model.text) is model.text


def started(projection: str) -> Any:
    """A model whose trunks return coordinates of two layers each."""
    model = model_of(*LAYERS, start="cca", projection=projection).eval()
    for tower in model.sides.values():
        width = sum(tower.trunk.widths)
        set_coordinates(tower.trunk, torch.randn(width), torch.randn(width, 64) / width**0.5)
    return model


@pytest.mark.parametrize("to", ["open_clip", "sentence-transformers", "transformers"])
def test_formats_without_such_a_model_are_refused(to: str, tmp_path: Path) -> None:
    if to == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    with pytest.raises(ModelError, match="--to onnx" if to != "transformers" else "onnx"):
        clipkit.export(started("linear"), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["linear", "residual"])
def test_onnx_computes_the_same_features(projection: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    proof = clipkit.export(started(projection), "onnx", tmp_path / "out")
    assert max(proof.image_difference, proof.text_difference) < 1e-5
