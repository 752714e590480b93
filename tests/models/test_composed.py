import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertModel,
    BertTokenizer,
    Data2VecTextConfig,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
    T5Model,
)

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder, compose, text_encoders
from clipkit.models.families import text_encoder
from clipkit.models.preprocess import stack_inputs
from clipkit.models.trunks import last_token, mean_of_tokens
from clipkit.recipe import ModelRecipe

TEXTS = ["a dog", "two dogs run in the snow", "snow"]
NEW_TEXT = {
    "name": "hf:bert",
    "pretrained": False,
    "tokenizer": "open_clip:ViT-B-32",
    "context_length": 16,
    "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projections(kind: str, tmp_path: Path, shapes: Path) -> None:
    model = model_of(projection=kind)
    images = sorted((shapes / "images").iterdir())
    features = model.image.trunk(**stack_inputs([model.image.preprocess(Image.open(path)) for path in images]))
    head = dict(model.image.head.named_parameters())
    normed = F.layer_norm(features, features.shape[1:], head["0.weight"], head["0.bias"])
    expected = normed @ head["1.weight"].T
    if kind == "mlp":
        expected = F.gelu(expected + head["1.bias"]) @ head["3.weight"].T
    torch.testing.assert_close(model.encode_image(images), F.normalize(expected.detach(), dim=-1), rtol=0, atol=1e-5)
    model.save(tmp_path / "m")
    again = clipkit.load(tmp_path / "m")
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images), rtol=0, atol=1e-6)


def test_unknown_text_encoder_gets_captions_of_full_length(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    listed = compose(ModelRecipe.model_validate({"image": model_image(), "text": {"name": str(bert)}}))
    assert listed.text.tokenize(TEXTS)["input_ids"].shape[1] < 20
    (bert / "config.json").write_text(json.dumps(config | {"model_type": "nystromformer"}))
    AutoModel.from_config(AutoConfig.from_pretrained(bert)).save_pretrained(bert)
    unlisted = compose(ModelRecipe.model_validate({"image": model_image(), "text": {"name": str(bert)}}))
    tokens = unlisted.text.tokenize(TEXTS)
    assert tokens["input_ids"].shape[1] == 20
    assert unlisted.text.cut_padding(tokens) is tokens


def model_image() -> dict[str, Any]:
    return {"name": "timm:test_convnext", "pretrained": False, "image_size": 64}


def model_of(**changes: Any) -> DualEncoder:
    values = {
        "image": {"name": "timm:test_convnext", "pretrained": False, "image_size": 64},
        "text": NEW_TEXT,
        "embed_dim": 24,
    }
    return compose(ModelRecipe.model_validate(values | changes))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """Tiny BERT in a folder as transformers and sentence-transformers write it."""
    folder = tmp_path / "bert"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "dog",
        "##s",
        "two",
        "run",
        "in",
        "the",
        "snow",
    ]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=20,
        )
    ).save_pretrained(folder)
    return folder


def test_saved_model_loads_with_equal_features_and_preprocessing(tmp_path: Path, shapes: Path) -> None:
    model = model_of()
    images = sorted((shapes / "images").iterdir())
    with torch.no_grad():
        model.logit_scale.fill_(3.3)
    model.save(tmp_path / "m")
    again = clipkit.load(str(tmp_path / "m"))
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.encode_text(TEXTS), model.encode_text(TEXTS), rtol=0, atol=1e-6)
    assert again.logit_scale.item() == pytest.approx(3.3)
    assert again.text.tokenize.context_length == 16
    assert again.image.preprocess.image_size == 64
    assert str(again.image.preprocess.evaluate) == str(model.image.preprocess.evaluate)


def test_saved_towers_open_with_timm_and_transformers(tmp_path: Path, shapes: Path) -> None:
    model = model_of()
    model.save(tmp_path / "m")
    native = timm.create_model(f"local-dir:{tmp_path / 'm' / 'image'}", pretrained=True, num_classes=0).eval()
    image = Image.open(next((shapes / "images").iterdir())).convert("RGB")
    pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(native))(image)[None]
    with torch.inference_mode():
        torch.testing.assert_close(native(pixels), model.image.trunk(pixel_values=pixels))
        text = AutoModel.from_pretrained(tmp_path / "m" / "text").eval()
        tokens = model.text.tokenize(TEXTS)
        torch.testing.assert_close(
            mean_of_tokens(text(**tokens).last_hidden_state, tokens["attention_mask"]),
            model.text.trunk(**tokens),
        )


def test_transformers_folder_becomes_a_text_tower(bert: Path) -> None:
    model = model_of(text={"name": str(bert)})
    native = AutoModel.from_pretrained(bert).eval()
    tokens = AutoTokenizer.from_pretrained(bert)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = native(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        mean = torch.stack([s[: int(m.sum())].mean(0) for s, m in zip(states, tokens["attention_mask"], strict=True)])
        features = model.text.trunk(**model.text.tokenize(TEXTS))
    torch.testing.assert_close(features, mean)
    assert model.text.tokenize.context_length == 20


def test_encoder_of_t5_becomes_the_text_tower(bert: Path, tmp_path: Path) -> None:
    config = T5Config(vocab_size=13, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0)
    T5Model(config).save_pretrained(bert)
    model = model_of(text={"name": str(bert), "context_length": 12})
    tokens = AutoTokenizer.from_pretrained(bert)(TEXTS, padding="max_length", max_length=12, return_tensors="pt")
    native = T5EncoderModel.from_pretrained(bert).eval()
    with torch.inference_mode():  # whole captions here, cut ones there
        states = native(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        pooled = mean_of_tokens(states, tokens["attention_mask"])
        expected = F.normalize(model.text.head(pooled), dim=-1)
    assert model.text.tokenize(TEXTS)["input_ids"].shape[1] < 12
    torch.testing.assert_close(model.encode_text(TEXTS), expected, rtol=0, atol=1e-6)
    model.save(tmp_path / "m")
    torch.testing.assert_close(clipkit.load(tmp_path / "m").encode_text(TEXTS), expected, rtol=0, atol=1e-6)


def test_encoder_decoder_without_an_encoder_class_is_refused(bert: Path) -> None:
    config = BartConfig(vocab_size=13, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2)
    AutoModel.from_config(config).save_pretrained(bert)
    with pytest.raises(ModelError, match="cannot load the encoder of bart alone"):
        model_of(text={"name": str(bert)})


@pytest.mark.parametrize("config", [RobertaConfig, Data2VecTextConfig])
def test_positions_start_after_the_padding_id(config: Any) -> None:
    settings = config(max_position_embeddings=514, pad_token_id=1)
    assert text_encoder(settings).positions(settings) == 512
    longest = AutoModel.from_config(
        config(
            max_position_embeddings=8, pad_token_id=1, vocab_size=9, hidden_size=8, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=8,
        )
    )  # fmt: skip
    longest(input_ids=torch.full((1, 6), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        longest(input_ids=torch.full((1, 7), 5))


@pytest.mark.parametrize(("file", "pooling"), [("cls", "cls"), ("lasttoken", "last"), ("mean", "mean")])
def test_pooling_of_old_sentence_transformers_folders(bert: Path, file: str, pooling: str) -> None:
    (bert / "1_Pooling").mkdir()
    key = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}.get(file, f"pooling_mode_{file}")
    (bert / "1_Pooling" / "config.json").write_text(f'{{"{key}": true}}')
    assert model_of(text={"name": str(bert)}).text.trunk.pooling == pooling
    assert model_of(text={"name": str(bert), "pooling": "cls"}).text.trunk.pooling == "cls"


def test_pooling_ignores_padding() -> None:
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(mean_of_tokens(states, mask)[0], states[0, :3].mean(0))
    torch.testing.assert_close(last_token(states, mask), torch.stack([states[0, 2], states[1, 4]]))


def test_open_clip_tokenizer_masks_padding() -> None:
    import open_clip

    tokenize = model_of().text.tokenize
    tokens = tokenize(["a dog", "! !", "a very long caption " * 10])
    assert tokens["input_ids"].shape == (3, 16)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [4, 4, 16]
    assert torch.equal(
        tokens["input_ids"],
        open_clip.get_tokenizer("ViT-B-32")(["a dog", "! !", "a very long caption " * 10], context_length=16),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"name": "timm:no_such_net", "pretrained": False}}, "timm:no_such_net"),
        ({"image": {"name": "no/such/folder"}}, "no/such/folder.*not found"),
        ({"text": NEW_TEXT | {"tokenizer": None}}, "needs a tokenizer"),
        ({"text": NEW_TEXT | {"tokenizer": "open_clip:ViT-Z"}}, "open_clip:ViT-Z"),
        ({"text": NEW_TEXT | {"config": {"hidden_sizes": 3}}}, "hidden_sizes is not an option"),
        ({"text": {"name": "no_such_text_tower_here"}}, "no_such_text_tower_here"),
    ],
)
def test_invalid_towers_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        model_of(**changes)
    assert "\n" not in str(caught.value)


def test_tokenizer_larger_than_the_embedding_is_refused(bert: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer open_clip:ViT-B-32.*13"):
        model_of(text={"name": str(bert), "tokenizer": "open_clip:ViT-B-32"})


def test_missing_and_truncated_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = compose(ModelRecipe.model_validate({"image": model_image(), "text": {"name": str(bert)}}))
    model.save(tmp_path / "m")
    heads = tmp_path / "m" / "heads.safetensors"
    content = heads.read_bytes()
    heads.write_bytes(content[:-10])
    with pytest.raises(ModelError, match=f"{heads}: is not a complete safetensors file"):
        clipkit.load(tmp_path / "m")
    heads.write_bytes(content)
    layout = tmp_path / "m" / "clipkit.json"
    written = layout.read_text()
    layout.write_text("[]")
    with pytest.raises(ModelError, match="is not a complete clipkit model"):
        clipkit.load(tmp_path / "m")
    layout.write_text(written)
    file = tmp_path / "m" / "text" / "model.safetensors"
    tensors = load_file(file)
    missing = "encoder.layer.1.attention.self.query.weight"
    save_file({name: value for name, value in tensors.items() if name != missing}, file)
    with pytest.raises(ModelError, match=f"{missing} is missing"):
        clipkit.load(tmp_path / "m")
    save_file({**tensors, missing: torch.zeros(2, 5)}, file)
    with pytest.raises(ModelError, match=rf"{missing} has shape \(2, 5\), but config.json expects"):
        clipkit.load(tmp_path / "m")


def test_code_in_a_model_folder_is_never_run(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bert / "evil.py").write_text("raise SystemExit('code has run')")
    config = json.loads((bert / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (bert / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto_map}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for pretrained in (True, False):
        with pytest.raises(ModelError, match="cannot build"):
            compose(
                ModelRecipe.model_validate(
                    {"image": model_image(), "text": {"name": str(bert), "pretrained": pretrained}}
                )
            )


@pytest.mark.parametrize(("mode", "pooled_by"), [("cls", "cls"), ("mean", "mean"), ("lasttoken", "last")])
def test_pooling_of_current_sentence_transformers_folders(mode: str, pooled_by: str, tmp_path: Path) -> None:
    pooling = pytest.importorskip("sentence_transformers.sentence_transformer.modules").Pooling
    (tmp_path / "1_Pooling").mkdir()
    pooling(32, pooling_mode=mode).save(str(tmp_path / "1_Pooling"))
    assert text_encoders._pooling(tmp_path) == pooled_by
    pooling(32, pooling_mode="max").save(str(tmp_path / "1_Pooling"))
    with pytest.raises(ModelError, match=r"by max .*model\.text\.pooling"):
        text_encoders._pooling(tmp_path)
