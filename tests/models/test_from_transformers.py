"""Features of every family, compared with its class in transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import clipkit
from clipkit.errors import ModelError
from clipkit.models.image_processors import processor_class, read_processor
from clipkit.models.tuning import tune
from clipkit.recipe import Recipe, Side
from tests.models.families import FAMILIES, SENTENCES, build, sentencepiece_model
from tests.models.one_tower import check_tower

LONG = "two dogs running through a low body of water " * 12
TEXTS = [*SENTENCES, LONG, "A  RED\nsquare", "", "ééé ☃"]
NEVER_CUT = ("siglip", "siglip2")


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, build(request.param, tmp_path_factory.mktemp("family") / request.param)


def native_of(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(folder).eval()


@torch.inference_mode()
def native_image_features(native: Any, folder: Path, images: list[Path]) -> torch.Tensor:
    opened = [Image.open(image).convert("RGB") for image in images]
    processor = read_processor(folder)
    return F.normalize(
        native.get_image_features(**processor(opened, return_tensors="pt")).pooler_output.flatten(1), dim=-1
    )


@torch.inference_mode()
def native_text_features(native: Any, folder: Path, texts: list[str]) -> torch.Tensor:
    """Tokens at full length, as each family's documentation describes."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    length = min(tokenizer.model_max_length, 64 if native.config.model_type == "align" else 10**9, 77)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    if native.config.model_type in NEVER_CUT:
        return F.normalize(native.get_text_features(input_ids=tokens["input_ids"]).pooler_output, dim=-1)
    return F.normalize(native.get_text_features(**tokens).pooler_output, dim=-1)


def test_features_equal_transformers(family: tuple[str, Path], images: list[Path]) -> None:
    name, folder = family
    model, native = clipkit.load(folder), native_of(folder)
    expected = native_image_features(native, folder, images)
    torch.testing.assert_close(model.encode_image(images), expected, rtol=0, atol=1e-5)
    expected = native_text_features(native, folder, TEXTS)
    torch.testing.assert_close(model.encode_text(TEXTS), expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).norm() > 1e-3  # the oracle tells captions apart
    scale = native.temperature.reciprocal() if name == "align" else native.logit_scale.exp()
    torch.testing.assert_close(model.logit_scale.exp().detach(), scale.detach().reshape(()), rtol=1e-6, atol=0)
    assert (model.logit_bias is not None) == hasattr(native, "logit_bias")
    assert not model.training


@pytest.mark.parametrize("side", ["text", pytest.param("image", marks=pytest.mark.slow)])
def test_one_tower_computes_the_same_features(
    family: tuple[str, Path], side: Side, images: list[Path], tmp_path: Path
) -> None:
    weights = {"text": ("vision_model.", "visual_projection."), "image": ("text_model.", "text_projection.")}
    check_tower(family[1], side, weights[side], images, tmp_path / "copy")


def test_cutting_padding_does_not_change_features(family: tuple[str, Path]) -> None:
    name, folder = family
    model, native = clipkit.load(folder), native_of(folder)
    tokens = model.text.tokenize(["x", LONG])
    assert ("attention_mask" not in tokens) == (name in NEVER_CUT)
    for text in SENTENCES:  # alone, so that each is cut to its own length
        length = model.text.tokenize([text])["input_ids"].shape[1]
        assert (length == model.text.tokenize.context_length) == (name in NEVER_CUT)
        expected = native_text_features(native, folder, [text])
        torch.testing.assert_close(model.encode_text([text]), expected, rtol=0, atol=1e-5)
    # Rows that came padded, as from loader workers, are the same after the cut.
    padded = {key: F.pad(value, (0, 3)) if name not in NEVER_CUT else value for key, value in tokens.items()}
    with torch.inference_mode():
        cut = model.text(model.text.cut_padding(padded))
        torch.testing.assert_close(cut, model.text(tokens), rtol=0, atol=1e-5)


def test_pipeline_of_a_saved_model_equals_clipkit(family: tuple[str, Path], images: list[Path], tmp_path: Path) -> None:
    _, folder = family
    model = clipkit.load(folder)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
        if model.logit_bias is not None:
            model.logit_bias.fill_(-1.5)
    model.save(tmp_path)
    check_pipeline(model, tmp_path, ["red square", "two DOGS running", "x"], "This is a photo of {}.", images)


def check_pipeline(model: Any, folder: Path, labels: list[str], template: str, images: list[Path]) -> None:
    """SigLIP's scores are sigmoids of single labels; the others' are a softmax over the labels."""
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    prompts = [template.format(label) for label in labels]
    expected = model.classify(images, prompts)
    if model.logit_bias is not None:
        cosines = model.encode_image(images) @ model.encode_text(prompts).T
        expected = (cosines * model.logit_scale.detach().exp() + model.logit_bias.detach()).sigmoid()
    assert expected.std(dim=1).min() > 1e-4  # labels have different scores
    files = [str(image) for image in images]
    # It resizes by torchvision unless told otherwise, which is not quite the same, and varies with Pillow's version.
    for tolerance in (3e-2, 1e-5):
        found = [
            {row["label"]: row["score"] for row in scores}
            for scores in classify(files, candidate_labels=labels, hypothesis_template=template)
        ]
        rows = torch.tensor([[scores[label] for label in labels] for scores in found])
        torch.testing.assert_close(rows, expected, rtol=0, atol=tolerance)
        classify.image_processor = read_processor(folder)


def test_trained_model_opens_with_transformers(
    family: tuple[str, Path], recipe: Callable[..., Recipe], tmp_path: Path, shapes: Path, images: list[Path]
) -> None:
    name, folder = family
    changes = {
        "model.name": str(folder),
        "loss.name": "sigmoid" if name in NEVER_CUT else "infonce",
        "train.epochs": 1,
        "train.micro_batch_size": 3,
        "optim.lr": 3e-3,
    }
    clipkit.train(recipe(changes))
    saved = tmp_path / "run" / "model"
    tuned, native = clipkit.load(tmp_path / "run"), native_of(saved)
    expected = native_image_features(native, saved, images)
    torch.testing.assert_close(tuned.encode_image(images), expected, rtol=0, atol=1e-5)
    expected = native_text_features(native, saved, TEXTS)
    torch.testing.assert_close(tuned.encode_text(TEXTS), expected, rtol=0, atol=1e-5)
    before = clipkit.load(folder)
    assert (tuned.encode_image(images) - before.encode_image(images)).abs().max() > 1e-4
    assert (tuned.encode_text(TEXTS) - before.encode_text(TEXTS)).abs().max() > 1e-4
    assert tuned.logit_scale != before.logit_scale
    if name == "align":
        assert native.temperature.item() == pytest.approx(1 / tuned.logit_scale.exp().item())


@pytest.mark.parametrize("method", ["frozen", "last:1", "head"])
def test_methods_train_a_part_of_the_tower(family: tuple[str, Path], method: str) -> None:
    name, folder = family
    model = clipkit.load(folder)
    for tower in (model.image, model.text):
        if method == "head" and name == "align" and tower is model.image:
            with pytest.raises(ModelError, match="use last:1 or frozen"):
                tune(tower, method)
            continue
        tune(tower, method)
        learning = [key for key, value in tower.named_parameters() if value.requires_grad]
        assert bool(learning) == (method != "frozen")
        tune(tower, "full")
        everything = [key for key, value in tower.named_parameters() if value.requires_grad]
        assert set(learning) < set(everything)


def test_siglip2_lowercases_for_gemma_tokenizer(tmp_path: Path, images: list[Path]) -> None:
    """The tokenizer of SigLIP 2's checkpoints for square images does not lowercase."""
    from tests.models.families import SMALL, VISION, save

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters]
    tokenizer = transformers.GemmaTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=64
    )
    text = SMALL | {"vocab_size": len(pieces), "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = processor_class("Siglip")(size={"height": 32, "width": 32})
    save(tmp_path, transformers.SiglipModel(config), tokenizer, processor)
    model = clipkit.load(tmp_path)
    torch.testing.assert_close(model.encode_text(["A Red SQUARE"]), model.encode_text(["a red square"]), rtol=0, atol=0)
    # Pipelines lowercase too: their default prompt starts with a capital letter.
    model.save(tmp_path / "saved")
    if hasattr(transformers, "CLIPImageProcessorPil"):  # pipelines before transformers 5.4 do not
        check_pipeline(model, tmp_path / "saved", ["Red", "a DOG"], "This is a photo of {}.", images)
    again = clipkit.load(tmp_path / "saved")
    torch.testing.assert_close(again.encode_text(["A Red SQUARE"]), model.encode_text(["a red square"]), rtol=0, atol=0)


def test_unsupported_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(ModelError, match="type blip .*AlignModel, .*SiglipModel"):
        clipkit.load(tmp_path)


def test_missing_and_mismatched_weights_are_refused(family: tuple[str, Path], tmp_path: Path) -> None:
    """transformers would silently use random numbers for missing weights."""
    _, folder = family
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    missing = next(name for name in tensors if name.startswith("text_model") and tensors[name].ndim == 2)
    save_file({name: value for name, value in tensors.items() if name != missing}, broken / "model.safetensors")
    with pytest.raises(ModelError, match=f"{broken}: .*{missing} is missing"):
        clipkit.load(broken)
    tensors[missing] = torch.zeros(3, 3)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{broken}: .*{missing} has shape \(3, 3\), but") as caught:
        clipkit.load(broken)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sentencepiece_trains() -> None:
    assert len(sentencepiece_model()) > 1000


def test_unknown_text_encoder_gets_a_mask(tmp_path: Path) -> None:
    from tests.models.families import SMALL, VISION, bert_tokenizer, save, vit_processor

    tokenizer = bert_tokenizer()
    text = transformers.ErnieConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**VISION), text, projection_dim=24
    )
    native = transformers.VisionTextDualEncoderModel(config).eval()
    save(tmp_path, native, tokenizer, vit_processor())
    texts = ["x", "two dogs running through a low body of water"]
    with torch.inference_mode():
        expected = native.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    model = clipkit.load(tmp_path)
    torch.testing.assert_close(model.encode_text(texts), F.normalize(expected, dim=-1), rtol=0, atol=1e-5)
    assert not model.text.padding_may_be_cut
    assert model.text.cut_padding(model.text.tokenize(["x"]))["input_ids"].shape == (1, 64)
