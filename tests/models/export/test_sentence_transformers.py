"""Features of exported models in `SentenceTransformer(folder)`, compared with clipkit's."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, compose
from clipkit.models.export import export
from clipkit.models.export.samples import CAPTIONS
from clipkit.recipe import ModelRecipe
from tests.models.export.test_conversions import UNREPAIRED
from tests.models.families import FAMILIES, SMALL, bert_tokenizer, build

sentence_transformers = pytest.importorskip("sentence_transformers")
QUICK = ("clip", "siglip", "siglip2", "metaclip_2")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    config = transformers.BertConfig(**SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 64})
    transformers.BertModel(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    image = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(image, str(folder / "image"), safe_serialization=True)
    return folder


def opened(model: DualEncoder, folder: Path) -> Any:
    proof = export(model, "sentence-transformers", folder)
    assert max(proof.image_difference, proof.text_difference) < 1e-5
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_families_equal_sentence_transformers(family: str, images: list[Path], tmp_path: Path) -> None:
    model = clipkit.load(build(family, tmp_path / "model"))
    theirs = opened(model, tmp_path / "out")
    texts = theirs.encode(list(CAPTIONS.values()), convert_to_tensor=True, batch_size=3)
    torch.testing.assert_close(texts, model.encode_text(CAPTIONS.values()), atol=1e-5, rtol=0)
    files = [str(path) for path in images]
    encoded = theirs.encode(files, convert_to_tensor=True)
    held = theirs.encode([Image.open(path) for path in images], convert_to_tensor=True)  # some gray, palette
    torch.testing.assert_close(held, encoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones(len(files)), atol=1e-5, rtol=0)
    assert theirs.similarity_fn_name == "cosine"
    torch.testing.assert_close(encoded, model.encode_image(files), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        theirs.similarity(encoded, texts),
        model.encode_image(files) @ model.encode_text(CAPTIONS.values()).T,
        atol=1e-5,
        rtol=0,
    )


def test_open_clip_model_is_exported_through_transformers(tmp_path: Path) -> None:
    export(clipkit.load(build("clip", tmp_path / "clip")), "open_clip", tmp_path / "open_clip")
    model = clipkit.load(tmp_path / "open_clip")
    texts = opened(model, tmp_path / "out").encode(UNREPAIRED, convert_to_tensor=True)
    torch.testing.assert_close(texts, model.encode_text(UNREPAIRED), atol=1e-5, rtol=0)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_composed_model_equals_sentence_transformers(
    projection: str, towers: Path, images: list[Path], tmp_path: Path
) -> None:
    recipe = {
        "image": {"name": str(towers / "image")}, "text": {"name": str(towers / "text")}, "projection": projection,
    }  # fmt: skip
    model = compose(ModelRecipe.model_validate(recipe))
    theirs = opened(model, tmp_path / "out")
    files = [Image.open(path).convert("RGB") for path in images]
    torch.testing.assert_close(
        theirs.encode(files, convert_to_tensor=True), model.encode_image(files), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        theirs.encode(list(CAPTIONS.values()), convert_to_tensor=True),
        model.encode_text(CAPTIONS.values()),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("embed_dim", [None, 16])
def test_image_tower_is_exported(embed_dim: int | None, towers: Path, images: list[Path], tmp_path: Path) -> None:
    recipe = {"image": {"name": str(towers / "image")}, "embed_dim": embed_dim}
    model = compose(ModelRecipe.model_validate(recipe))
    theirs = opened(model, tmp_path / "out")
    files = [Image.open(path).convert("RGB") for path in images]
    torch.testing.assert_close(
        theirs.encode(files, convert_to_tensor=True), model.encode_image(files), atol=1e-5, rtol=0
    )


def test_rgb_requirement_of_timm_is_noted(towers: Path, images: list[Path], tmp_path: Path) -> None:
    proof = export(
        compose(ModelRecipe.model_validate({"image": {"name": str(towers / "image")}})),
        "sentence-transformers",
        tmp_path / "out",
    )
    assert "rgb()" in proof.notes[0]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for other in (str(images[0]), Image.open(images[2])):  # once one of them works, the note is wrong
        with pytest.raises((ValueError, RuntimeError)):
            theirs.encode([other])


def test_missing_package_is_named(towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compose(ModelRecipe.model_validate({"text": {"name": str(towers / "text")}}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"clipkit-torch\[sentence-transformers\]") as caught:
        export(model, "sentence-transformers", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_text_tower_is_exported(pooling: str, towers: Path, tmp_path: Path) -> None:
    model = compose(ModelRecipe.model_validate({"text": {"name": str(towers / "text"), "pooling": pooling}}))
    texts = opened(model, tmp_path / "out").encode(list(CAPTIONS.values()), convert_to_tensor=True)
    torch.testing.assert_close(texts, model.encode_text(CAPTIONS.values()), atol=1e-5, rtol=0)


def test_text_tower_with_the_clip_tokenizer_is_exported(tmp_path: Path) -> None:
    recipe = {
        "text": {
            "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 24,
            "config": SMALL,
        },
        "embed_dim": 16,
    }  # fmt: skip
    model = compose(ModelRecipe.model_validate(recipe))
    texts = opened(model, tmp_path / "out").encode(UNREPAIRED, convert_to_tensor=True)
    torch.testing.assert_close(texts, model.encode_text(UNREPAIRED), atol=1e-5, rtol=0)
