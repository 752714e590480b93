"""Lists and descriptions of models."""

from pathlib import Path

import open_clip
import pytest

import clipkit
from clipkit.models.describe import describe, loadable
from clipkit.models.families import FAMILIES
from tests.models.families import build


def test_loadable_lists_every_architecture_of_open_clip() -> None:
    found = loadable()
    assert found["transformers"] == [family.class_name for family in FAMILIES.values()]
    names = found["open_clip"]
    assert len(names) == len(set(names)) == len(open_clip.list_models()) + len(open_clip.list_pretrained())
    assert "open_clip:ViT-B-32" in names
    assert "open_clip:ViT-B-32/openai" in names
    some = loadable("SigLIP2")
    assert some["transformers"] == ["Siglip2Model"]
    assert some["open_clip"]
    assert all("siglip2" in name.lower() for name in some["open_clip"])
    assert loadable("no such thing") == {"transformers": [], "open_clip": []}


def test_describe_clip(tiny_clip: Path) -> None:
    found = describe(str(tiny_clip))
    model = clipkit.load(tiny_clip)
    assert found["layout"] == "transformers"
    assert found["image_tower"] in ("CLIPVisionModel", "CLIPVisionTransformer")  # by version of transformers
    assert found["image_parameters"] + found["text_parameters"] + 1 == sum(p.numel() for p in model.parameters())
    assert (found["embed_dim"], found["image_size"], found["context_length"]) == (24, 32, 77)
    assert found["image_blocks"] == found["text_blocks"] == 3
    assert found["image_activation"] == found["text_activation"] == "QuickGELU"
    assert found["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert found["loss"] == "softmax (InfoNCE)"
    assert found["scale"] == pytest.approx(model.logit_scale.exp().item())
    assert found["licence"] is None
    weights = sum(p.nbytes for p in model.parameters())
    assert weights < found["inference_bytes"] < 3 * weights
    assert 4 * weights < found["training_bytes"] < 10 * weights


def test_describe_siglip_with_a_card(tmp_path: Path) -> None:
    folder = build("siglip2", tmp_path / "siglip2")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [vision]\n---\n# A model\n")
    found = describe(str(folder))
    assert found["licence"] == "apache-2.0"
    assert found["loss"] == "sigmoid"
    assert found["bias"] is not None
    assert found["image_size"] is None
    assert found["padding_is_cut"] is False
    (folder / "README.md").write_text("# A model\nwithout a header\n")
    assert describe(str(folder))["licence"] is None


def test_describe_composed_model(tmp_path: Path) -> None:
    from tests.models.test_composed import model_of

    model_of().save(tmp_path / "m")
    found = describe(str(tmp_path / "m"))
    assert found["layout"] == "composed"
    assert (found["image_tower"], found["text_tower"]) == ("ConvNeXt", "BertModel")
    assert (found["embed_dim"], found["image_size"], found["context_length"]) == (24, 64, 16)
    assert found["image_activation"] == "GELUTanh"
    assert found["licence"] is None
