"""The text tower of a CLIP, alone: the same features as the model, and never other results."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import clipkit
from clipkit.errors import DataError
from clipkit.models import DualEncoder
from clipkit.search import Index, embed
from clipkit.search.quick_text import QuickText, quick_text
from tests.models.test_folding import started
from tests.models.test_layers import model_of

TEXTS = ["two dogs in snow", "A red BUS, street; 1,234 signs!", "Äpfel 苹果", "word " * 200, ""]
TEXTS += ["cats &amp; <end_of_text> d\u00cc\u0081gs"]


@pytest.mark.parametrize(
    "changes", [{}, {"hidden_act": "gelu"}, {"eos_token_id": 2}, {"layer_norm_eps": 1e-2, "num_attention_heads": 4}]
)
def test_features_are_those_of_the_model(changes: dict[str, object], tiny_clip: Path, tmp_path: Path) -> None:
    from clipkit.models import load

    folder = shutil.copytree(tiny_clip, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    check_features(quick_text(folder), load(folder))


def check_features(quick: QuickText | None, model: DualEncoder) -> None:
    assert quick is not None
    for text in TEXTS:
        torch.testing.assert_close(quick.encode_text([text]), model.encode_text([text]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_features_are_those_of_open_clip(quick_gelu: bool, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        "quick_gelu": quick_gelu,
    }
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    check_features(quick_text(tmp_path), clipkit.load(tmp_path))
    config["text_cfg"] |= {"pool_type": "last"}
    file.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    assert quick_text(tmp_path) is None


def test_a_search_for_words_loads_the_text_tower_alone(index_folder: Path, model: DualEncoder) -> None:
    index, whole = Index(index_folder), Index(index_folder, model=model)
    found = index.search("a red square", minus="a circle")
    assert isinstance(index.encoder._quick_text, QuickText)
    assert not index.encoder.is_whole
    assert [hit.row for hit in found] == [hit.row for hit in whole.search("a red square", minus="a circle")]
    query = ("a red square", {"images": [index.image(3)]})
    assert [(hit.row, hit.score) for hit in index.search(query[0], **query[1])] == [
        (hit.row, pytest.approx(hit.score, abs=1e-5)) for hit in whole.search(query[0], **query[1])
    ]
    assert not index.encoder.is_whole


@pytest.mark.parametrize("projection", [pytest.param("mlp", marks=pytest.mark.slow), "residual"])
def test_the_text_tower_of_two_towers_is_loaded_without_the_image_tower(
    projection: str, shapes: Path, tmp_path: Path
) -> None:
    towers = started(projection) if projection == "residual" else model_of({}, {}, projection=projection)
    towers.save(tmp_path / "model")
    embed(shapes / "captions.csv", tmp_path / "model", tmp_path / "index")
    query = {"a red square": 1.0, "a circle": -1.0}
    whole = Index(tmp_path / "index", model=clipkit.load(tmp_path / "model")).search(query)
    shutil.rmtree(tmp_path / "model" / "image")
    index = Index(tmp_path / "index")
    assert [(hit.row, hit.score) for hit in index.search(query)] == [(hit.row, hit.score) for hit in whole]
    assert not index.encoder.is_whole


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "model.safetensors"])
def test_files_of_another_kind_are_left_to_the_usual_loading(missing: str, tiny_clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip, tmp_path / "model")
    (folder / missing).unlink()
    assert quick_text(folder) is None
    assert quick_text("open_clip:ViT-B-32") is None


def test_another_model_is_refused(index_folder: Path, tiny_clip: Path, tmp_path: Path) -> None:
    from clipkit.models import load

    other = load(tiny_clip)
    with torch.no_grad():
        other.text.head.weight.normal_()
    other.save(tmp_path / "other")
    with pytest.raises(DataError, match="other"):
        Index(index_folder, model=tmp_path / "other").search("a red square")
