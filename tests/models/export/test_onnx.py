"""What onnxruntime makes of an exported model, from pictures and strings, beside what clipkit makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, compose
from clipkit.models.export import export
from clipkit.models.export.samples import CAPTIONS
from clipkit.recipe import ModelRecipe
from tests.models.families import FAMILIES, SMALL, build

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def check(model: DualEncoder, folder: Path, pictures: list[Path]) -> None:
    """Any number of inputs of any length, through bare sessions."""
    proof = export(model, "onnx", folder)
    assert max(proof.image_difference, proof.text_difference) < 1e-4
    image = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    text = onnxruntime.InferenceSession(folder / "text.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        opened = [Image.open(own).convert("RGB") for own in pictures[:count]]
        pixels = torch.stack([model.image.preprocess(own)["pixel_values"] for own in opened])
        found = image.run(["image_features"], {"pixel_values": pixels.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model.encode_image(opened), atol=1e-4, rtol=0)
        captions = list(CAPTIONS[3 : 3 + count])
        tokens = {name: own.numpy() for name, own in model.text.tokenize(captions).items()}
        found = text.run(["text_features"], tokens)[0]
        torch.testing.assert_close(torch.from_numpy(found), model.encode_text(captions), atol=1e-4, rtol=0)


def test_clip_and_the_example_beside_it(pictures: list[Path], tmp_path: Path) -> None:
    model = clipkit.load(build("clip", tmp_path / "model"))
    check(model, tmp_path / "out", pictures)
    config = json.loads((tmp_path / "out" / "clipkit_onnx.json").read_text())
    for side in ("image", "text"):
        graph = onnx.load(tmp_path / "out" / f"{side}.onnx")
        onnx.checker.check_model(graph)
        assert [own.version for own in graph.opset_import if own.domain in ("", "ai.onnx")] == [config["opset"]]
    # In a Python that has no torch.
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import runpy;"
        f"sys.argv = ['example.py', {str(pictures[0])!r}, 'a cat', 'a red square'];"
        f"runpy.run_path({str(tmp_path / 'out' / 'example.py')!r}, run_name='__main__')"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    shares = dict(reversed(line.split("  ", 1)) for line in said.splitlines())
    wanted = model.classify(pictures[0], ["a cat", "a red square"])[0].tolist()
    assert float(shares["a cat"]) == pytest.approx(wanted[0], abs=1e-3)
    assert float(shares["a red square"]) == pytest.approx(wanted[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("clip", "siglip2")])
def test_families(family: str, pictures: list[Path], tmp_path: Path) -> None:
    check(clipkit.load(build(family, tmp_path / "model")), tmp_path / "out", pictures)


@pytest.mark.slow
def test_two_towers(pictures: list[Path], tmp_path: Path) -> None:
    recipe = {
        "image": {"name": "timm:resnet10t", "pretrained": False, "image_size": 64},
        "text": {
            "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 24,
            "config": SMALL,
        },
    }  # fmt: skip
    check(compose(ModelRecipe.model_validate(recipe)), tmp_path / "out", pictures)


@pytest.mark.slow
def test_open_clips(pictures: list[Path], tmp_path: Path) -> None:
    export(clipkit.load(build("clip", tmp_path / "clip")), "open_clip", tmp_path / "small")
    check(clipkit.load(tmp_path / "small"), tmp_path / "out", pictures)
    check(clipkit.load("open_clip:ViT-B-32"), tmp_path / "large", pictures)


@pytest.mark.slow
def test_8_bits_say_what_they_cost(tmp_path: Path) -> None:
    model = clipkit.load(build("clip", tmp_path / "model"))
    whole = export(model, "onnx", tmp_path / "whole")
    small = export(model, "onnx", tmp_path / "small", int8=True)
    assert whole.text_cosine == pytest.approx(1.0, abs=1e-6)
    assert 0.99 < small.text_cosine < 0.99999
    assert small.text_difference > 1e-4
    sizes = [(tmp_path / name / "text.onnx").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.7 * sizes[0]
    assert json.loads((tmp_path / "small" / "clipkit_onnx.json").read_text())["weights"] == "int8"


def test_what_has_no_operator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="picture's own shape, which has no ONNX operator"):
        export(clipkit.load(build("siglip2", tmp_path / "model")), "onnx", tmp_path / "out")
    with pytest.raises(ModelError, match="int8 is an option of ONNX, not of open_clip"):
        export(clipkit.load(build("clip", tmp_path / "clip")), "open_clip", tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModelError, match=r"onnxscript is not installed.*pip install clipkit-torch\[onnx\]"):
        export(clipkit.load(build("clip", tmp_path / "model")), "onnx", tmp_path / "out")
