"""Features of exported models in onnxruntime, from images and strings, compared with clipkit's."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, compose
from clipkit.models.export import export, onnx_config
from clipkit.models.export import onnx as onnx_format
from clipkit.models.export.comparison import Comparison, changed
from clipkit.models.export.samples import CAPTIONS
from clipkit.models.preprocess import stack_inputs
from clipkit.recipe import ModelRecipe
from tests.models.families import FAMILIES, SMALL, build
from tests.models.test_from_open_clip import CONFIGS

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def check(model: DualEncoder, folder: Path, images: list[Path]) -> None:
    """Compare batches of several sizes and lengths in plain onnxruntime sessions."""
    proof = export(model, "onnx", folder)
    assert max(proof.image_difference, proof.text_difference) < 1e-4
    image = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    text = onnxruntime.InferenceSession(folder / "text.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        opened = [Image.open(path).convert("RGB") for path in images[:count]]
        inputs = stack_inputs([model.image.preprocess(photo) for photo in opened])
        found = image.run(["image_features"], {name: value.numpy() for name, value in inputs.items()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model.encode_image(opened), atol=1e-4, rtol=0)
        captions = list(CAPTIONS.values())[3 : 3 + count]
        tokens = {name: value.numpy() for name, value in model.text.tokenize(captions).items()}
        found = text.run(["text_features"], tokens)[0]
        torch.testing.assert_close(torch.from_numpy(found), model.encode_text(captions), atol=1e-4, rtol=0)


def test_clip_and_its_example(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clipkit.load(build("clip", tmp_path / "model"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    check(model, tmp_path / "out", images)
    written = {"README.md", "image.onnx", "text.onnx", "tokenizer.json", "clipkit_onnx.json", "example.py"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    config = json.loads((tmp_path / "out" / "clipkit_onnx.json").read_text())
    for side in ("image", "text"):
        graph = onnx.load(tmp_path / "out" / f"{side}.onnx")
        onnx.checker.check_model(graph)
        assert [opset.version for opset in graph.opset_import if opset.domain in ("", "ai.onnx")] == [config["opset"]]
    # In a Python that has no torch.
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import runpy;"
        f"sys.argv = ['example.py', {str(images[0])!r}, 'a cat', 'a red square'];"
        f"runpy.run_path({str(tmp_path / 'out' / 'example.py')!r}, run_name='__main__')"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    shares = dict(reversed(line.split("  ", 1)) for line in output.splitlines())
    expected = model.classify(images[0], ["a cat", "a red square"])[0].tolist()
    assert float(shares["a cat"]) == pytest.approx(expected[0], abs=1e-3)
    assert float(shares["a red square"]) == pytest.approx(expected[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "clip"])
def test_families_equal_onnxruntime(family: str, images: list[Path], tmp_path: Path) -> None:
    check(clipkit.load(build(family, tmp_path / "model")), tmp_path / "out", images)


@pytest.mark.slow
def test_patches_of_images_of_any_shape(tmp_path: Path) -> None:
    """Images of other shapes than the two traced ones, prepared by the exported example."""
    model = clipkit.load(build("siglip2", tmp_path / "model"))
    export(model, "onnx", tmp_path / "out")
    example = onnx_format._example(tmp_path / "out")
    opened = [Image.effect_noise(size, 90).convert("RGB") for size in ((90, 11), (17, 203), (64, 64), (3, 2), (1, 80))]
    shapes = [tuple(example.pixels(noise)["spatial_shapes"]) for noise in opened]
    assert len(set(shapes)) == len(shapes)
    for noise in opened:
        for name, value in model.image.preprocess(noise).items():
            torch.testing.assert_close(torch.from_numpy(example.pixels(noise)[name]), value, atol=1e-6, rtol=0)
    for some in (opened, opened[1:2]):
        found = torch.from_numpy(example.encode_images(some))
        torch.testing.assert_close(found, model.encode_image(some), atol=1e-4, rtol=0)


@pytest.fixture
def architecture(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Register a tiny architecture with open_clip during a test."""
    from open_clip import factory

    before = list(factory._MODEL_CONFIG_PATHS)

    def add(name: str) -> str:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(CONFIGS[name]))
        factory.add_model_config(tmp_path / "configs")
        return f"open_clip:{name}"

    yield add
    factory._MODEL_CONFIG_PATHS[:] = before
    factory._rescan_model_configs()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "tiny-bert"])
def test_open_clip_towers_equal_onnxruntime(
    name: str, architecture: Callable[[str], str], images: list[Path], tmp_path: Path
) -> None:
    check(clipkit.load(architecture(name)), tmp_path / "out", images)


def test_padding_equals_open_clip_for_towers_that_use_it(architecture: Callable[[str], str], tmp_path: Path) -> None:
    model = clipkit.load(architecture("tiny-clipa"))
    text = onnx_config.write_tokenizer(model, model.text.tokenize(["x"]), tmp_path)
    (tmp_path / "clipkit_onnx.json").write_text(json.dumps({"text": text}))
    shutil.copy(onnx_format.onnx_example.__file__, tmp_path / "example.py")
    found = onnx_format._example(tmp_path).tokens([*CAPTIONS.values(), "! wow!!", "0 0"])["input_ids"]
    expected = open_clip.get_tokenizer("tiny-clipa")([*CAPTIONS.values(), "! wow!!", "0 0"])
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
def test_single_tower_is_exported(tmp_path: Path) -> None:
    image = {"image": {"name": "timm:test_vit", "pretrained": False}, "embed_dim": 16}
    export(compose(ModelRecipe.model_validate(image)), "onnx", tmp_path / "image")
    text = {"text": {"name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "config": SMALL}}
    export(compose(ModelRecipe.model_validate(text | {"embed_dim": 16})), "onnx", tmp_path / "text")
    always = {"README.md", "clipkit_onnx.json", "example.py"}
    assert {path.name for path in (tmp_path / "image").iterdir()} == always | {"image.onnx"}
    assert {path.name for path in (tmp_path / "text").iterdir()} == always | {"text.onnx", "tokenizer.json"}
    for side in ("image", "text"):
        command = [sys.executable, str(tmp_path / side / "example.py"), "x.jpg", "x"]
        output = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "only one tower" in output.stderr
        output = subprocess.run(command[:2], capture_output=True, text=True, check=True)
        assert "16)" in output.stdout


@pytest.mark.slow
def test_composed_model_equals_onnxruntime(images: list[Path], tmp_path: Path) -> None:
    recipe = {
        "image": {"name": "timm:resnet10t", "pretrained": False, "image_size": 64},
        "text": {
            "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 24,
            "config": SMALL,
        },
    }  # fmt: skip
    check(compose(ModelRecipe.model_validate(recipe)), tmp_path / "out", images)


@pytest.mark.slow
def test_open_clip_model_equals_onnxruntime(images: list[Path], tmp_path: Path) -> None:
    export(clipkit.load(build("clip", tmp_path / "clip")), "open_clip", tmp_path / "small")
    small = clipkit.load(tmp_path / "small")
    check(small, tmp_path / "out", images)
    assert "HTML entities" in export(small, "onnx", tmp_path / "again").notes[0]
    check(clipkit.load("open_clip:ViT-B-32"), tmp_path / "large", images)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_int8_reports_its_differences(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights in a second file too: no float32 weights remain."""
    if large:
        monkeypatch.setattr(onnx_format, "_LARGEST", 1000)
    model = clipkit.load(build("clip", tmp_path / "model"))
    whole = export(model, "onnx", tmp_path / "whole")
    small = export(model, "onnx", tmp_path / "small", int8=True)
    assert whole.text_cosine == pytest.approx(1.0, abs=1e-6)
    assert whole.changed == 0
    assert 0.99 < small.text_cosine < 0.99999
    assert small.text_difference > 1e-4
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("whole", "small")]
    assert names[0] == names[1]
    assert ("text.onnx.data" in names[1]) == large
    file = "text.onnx.data" if large else "text.onnx"
    sizes = [(tmp_path / folder / file).stat().st_size for folder in ("whole", "small")]
    assert sizes[1] < 0.7 * sizes[0]
    assert json.loads((tmp_path / "small" / "clipkit_onnx.json").read_text())["weights"] == "int8"


@pytest.mark.slow
def test_int8_with_large_differences_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clipkit.load(build("clip", tmp_path / "model"))
    monkeypatch.setattr(onnx_format, "LEAST_COSINE", 0.999999)
    with pytest.raises(ModelError, match=r"8-bit weights.*images.*less than 0.999999"):
        export(model, "onnx", tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()
    export(model, "onnx", tmp_path / "out", int8=True, tolerance=0.5)


def test_changed_counts_captions_with_another_top_image() -> None:
    eye, turned = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    same, other, none = (Comparison("abc", features, eye) for features in (eye, turned, None))
    assert changed(same, same) == 0
    assert changed(same, other) == 2
    assert changed(other, same) == 2
    assert changed(none, same) == 0


def test_failing_onnxruntime_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clipkit.load(build("clip", tmp_path / "model"))

    def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(onnx_format.Onnx, "_write_tower", nothing)
    with pytest.raises(ModelError, match="onnxruntime cannot run"):
        export(model, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_is_refused_for_other_formats(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="int8 applies to the format onnx, not to open_clip"):
        export(clipkit.load(build("clip", tmp_path / "clip")), "open_clip", tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModelError, match=r"onnxscript is .*not installed.*clipkit-torch\[onnx\]"):
        export(clipkit.load(build("clip", tmp_path / "model")), "onnx", tmp_path / "out")
