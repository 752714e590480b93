import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import ModelError
from clipkit.models import loading


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no/such/folder: .*not found"),
        ("./missing", "./missing: folder not found"),
        ("nobody/nothing", "nobody/nothing: .*HF_HUB_OFFLINE"),
        ("my--model", "my--model: .* valid Hub repository name"),
        ("~nosuchuser/x", "~nosuchuser/x: folder not found"),
        ("x" * 300, "x{300}: .*folder"),
        ("open_clip:none", "no architecture none"),
    ],
)
def test_unknown_model_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        clipkit.load(name)
    assert "\n" not in str(caught.value)


def test_folder_without_a_model_is_refused_with_the_needed_files(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"needs clipkit.json \(clipkit\), open_clip_config.json \(open_clip\) or config.json"
    ):
        clipkit.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="type bert"):
        clipkit.load(tmp_path)


def test_truncated_weights_are_refused_in_one_line(tiny_clip: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_clip, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"{weights}: is not a complete safetensors file") as caught:
        clipkit.load(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "xpu"])
def test_unavailable_device_is_refused_in_one_line(device: str, tiny_clip: Path) -> None:
    with pytest.raises(ModelError, match=f"device {device} is not available") as caught:
        clipkit.load(tiny_clip, device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "half", torch.int32, None, 16])
def test_unknown_type_is_refused_in_one_line(dtype: Any, tiny_clip: Path) -> None:
    with pytest.raises(ModelError, match=f"dtype {dtype} .*bf16"):
        clipkit.load(tiny_clip, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [("fp32", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16), (torch.float64, torch.float64)],
)
def test_type_of_the_weights(dtype: Any, weights: torch.dtype, tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {weights}
    assert model.image.autocast is None
    assert model.encode_text("a dog").dtype == torch.float32


def test_auto_encodes_under_autocast_where_a_device_has_bfloat16(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_has_bfloat16", lambda device: True)
    exact, fast = clipkit.load(tiny_clip, device="cpu"), clipkit.load(tiny_clip, device="cpu", dtype="auto")
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.float32}
    texts = ["a dog", "two cats"]
    features, expected = fast.encode_text(texts), exact.encode_text(texts)
    assert features.dtype == torch.float32
    assert not torch.equal(features, expected)
    torch.testing.assert_close(features, expected, rtol=0, atol=0.02)
    image = Image.new("RGB", (40, 30), "red")
    assert not torch.equal(fast.encode_image(image), exact.encode_image(image))
    torch.testing.assert_close(fast.encode_image(image), exact.encode_image(image), rtol=0, atol=0.02)
