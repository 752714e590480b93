"""Model cards are valid for huggingface_hub, and their code examples run and give the right results."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

import clipkit
from clipkit.models import compose
from clipkit.models.export import export
from clipkit.models.publish.layout import Layout
from clipkit.models.publish.provenance import Base
from clipkit.recipe import ModelRecipe, Recipe
from clipkit.report.model_card import model_card
from tests.models.families import FAMILIES, build

BOTH = ("image", "text")
CLIP = Layout("transformers", "CLIPModel", BOTH, (Base("org/clip", ("org/clip",), "mit"),))


def run_code(card: str, folder: Path, photo: Path) -> dict[str, dict[str, Any]]:
    """Run each code block of the card on a model in a folder; return its variables by the block's title."""
    variables: dict[str, dict[str, Any]] = {}
    for name, code in re.findall(r"With ([^\n]*):\n\n```python\n(.*?)```", card, re.DOTALL):
        for old, new in (
            ('snapshot_download("ORG/NAME")', repr(str(folder))), ("hf-hub:ORG/NAME", f"local-dir:{folder}"),
            ("ORG/NAME", str(folder)), ("photo.jpg", str(photo)), ("\nclassify(", "\nanswer = classify("),
        ):  # fmt: skip
            code = code.replace(old, new)
        variables[name] = {}
        exec(compile(code, name, "exec"), variables[name])
    return variables


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image in the input size of most tiny models: transformers' processors resize slightly differently from Pillow."""
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels.numpy()).save(file)
    return file


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"clip_legacy"}))
def test_transformers_code_gives_the_features_of_clipkit(family: str, tmp_path: Path, photo: Path) -> None:
    build(family, tmp_path / "base")
    model = clipkit.load(tmp_path / "base")
    model.save(tmp_path / "saved")
    variables = run_code(model_card(model.layout()), tmp_path / "saved", photo)
    logits = model.encode_image([photo]) @ model.encode_text(["a cat", "a dog"]).T * model.logit_scale.exp().detach()
    bias = 0 if model.logit_bias is None else model.logit_bias.detach()
    expected = (logits + bias).sigmoid() if "siglip" in family else logits.softmax(dim=1)
    torch.testing.assert_close(variables["transformers"]["probabilities"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(variables["clipkit"]["probabilities"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(variables["clipkit"]["text_features"], model.encode_text(["a cat", "a dog"]))
    assert ("transformers' pipeline" in variables) == (family != "vision_text_dual_encoder")
    if "transformers' pipeline" in variables:
        scores = {entry["label"]: entry["score"] for entry in variables["transformers' pipeline"]["answer"]}
        assert [scores["a cat"], scores["a dog"]] == pytest.approx(expected[0].tolist(), abs=1e-5)


def test_open_clip_code_gives_the_features_of_clipkit(tmp_path: Path, photo: Path) -> None:
    model = clipkit.load(build("clip", tmp_path / "base"))
    export(model, "open_clip", tmp_path / "open_clip")
    opened = clipkit.load(tmp_path / "open_clip")
    variables = run_code(model_card(opened.layout()), tmp_path / "open_clip", photo)
    expected = opened.encode_image([photo]) @ opened.encode_text(["a cat", "a dog"]).T
    torch.testing.assert_close(variables["open_clip"]["similarity"], expected, rtol=0, atol=1e-5)
    probabilities = opened.classify([photo], ["a cat", "a dog"])
    torch.testing.assert_close(variables["open_clip"]["probabilities"], probabilities, rtol=0, atol=1e-5)


def test_code_for_two_towers_loads_their_weights(tmp_path: Path, photo: Path) -> None:
    text = {
        "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
        "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    }  # fmt: skip
    recipe = {"image": {"name": "timm:test_convnext", "pretrained": False, "image_size": 64}, "text": text}
    model = compose(ModelRecipe.model_validate(recipe | {"embed_dim": 24}))
    model.save(tmp_path)
    card = model_card(clipkit.load(tmp_path).layout(ModelRecipe.model_validate(recipe)))
    assert "license" not in ModelCard(card).data.to_dict()  # random weights have no license
    variables = run_code(card, tmp_path, photo)
    parts = next(entry for name, entry in variables.items() if "image_trunk" in entry)
    for name, value in model.image.trunk.native.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(parts["image_trunk"].state_dict()[name], value)
    for name, value in model.text.trunk.native.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(parts["text_trunk"].state_dict()[name], value)


def test_base_models_of_timm_and_transformers_towers() -> None:
    recipe = ModelRecipe.model_validate({"image": {"name": "timm:resnet50"}, "text": {"name": "hf:org/bert@v1"}})
    model = compose(ModelRecipe.model_validate({"image": {"name": "timm:test_convnext", "pretrained": False}}))
    layout = model.layout(recipe)
    assert layout.repositories == ["timm/resnet50.a1_in1k", "org/bert"]
    assert [base.license for base in layout.bases] == ["apache-2.0", None]
    tagged = model.layout(ModelRecipe(name="open_clip:ViT-B-32/openai"))
    assert tagged.repositories == ["timm/vit_base_patch32_clip_224.openai"]


def test_base_model_in_a_folder_is_not_named_by_its_path(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    card = base / "README.md"
    card.write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: https://a.b/c\nbase_model: /home/x/y\n---\n"
    )
    model = compose(ModelRecipe.model_validate({"image": {"name": "timm:test_convnext", "pretrained": False}}))
    layout = model.layout(ModelRecipe(name=str(base)))
    assert layout.bases == (Base("base", (), "other", "mine", "https://a.b/c"),)  # a folder is not a Hub repository
    header = ModelCard(model_card(layout)).data
    assert (header.license, header.license_name, header.license_link) == ("other", "mine", "https://a.b/c")
    card.write_text("---\nlicense: [mit, : }\n---\n")  # invalid YAML
    assert model.layout(ModelRecipe(name=str(base))).bases == (Base("base"),)


@pytest.mark.parametrize(
    ("licences", "header", "words"),
    [
        (["mit", "mit"], "mit", []),
        (["mit", "apache-2.0"], "other", ["- part0: mit", "- part1: apache-2.0"]),
        (["mit", None], None, ["- part0: mit", "- part1: not stated", "ask the owner"]),
        ([None], None, ["- part0: not stated"]),
        ([], None, []),
    ],
)
def test_license_of_several_bases(licences: list[str | None], header: str | None, words: list[str]) -> None:
    bases = tuple(Base(f"part{number}", (), licence) for number, licence in enumerate(licences))
    card = ModelCard(model_card(Layout("clipkit", None, BOTH, bases)))
    assert card.data.license == header
    assert ("## License" in card.text) == bool(words)
    assert all(entry in card.text for entry in words)


def test_results_are_in_text_and_header() -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.625, "chance": 0.1}
    result = {
        "task": "retrieval", "data": {"name": "hf:org/photos:test", "images": 1000, "captions": 5000},
        "metrics": {"image_retrieval_recall@1": figure, "text_retrieval_recall@1": figure | {"value": None}},
    }  # fmt: skip
    card = ModelCard(model_card(CLIP, [result]))
    assert re.search(r"\| 50\.0 % \| 40\.0 % – 62\.5 % \| 10\.0 % \|", card.text)
    assert "1,000 images, 5,000 captions" in card.text
    _, (entry,) = model_index_to_eval_results(card.data.to_dict()["model-index"])  # undefined metrics are omitted
    assert (entry.dataset_type, entry.dataset_split, entry.metric_value) == ("org/photos", "test", 0.5)


def test_card_contains_no_local_paths_or_credentials() -> None:
    recipe = Recipe.from_dict(
        {
            "model": {"name": "open_clip:ViT-B-32?weights=secret/home/a.pt"},
            "data": {
                "train": ["secret/one.csv?image=b", {"source": "https://me:secret@host/two.tar?key=secret"}],
                "validation": "../secret/dev.csv", "labelled": "~/secret/classes",
            },
            "loss": {"name": [{"name": "infonce"}, {"name": "distillation", "teacher": "/secret/teacher"}]},
            "eval": {"retention": "secret/kept"},
            "output": "secret/runs/run",
        }
    )  # fmt: skip
    card = model_card(CLIP, [], recipe.model_dump(mode="json"))
    assert "secret" not in card
    assert "one.csv, https://host/two.tar" in card
    assert "open_clip:ViT-B-32?weights=a.pt, tuned: image tower full, text tower full" in card
    assert "- teacher: teacher" in card
    written = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert written["data"]["validation"] == "dev.csv"
    assert written["optim"] == recipe.model_dump(mode="json")["optim"]
