"""Features of every kind of open_clip model, compared with open_clip."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import clipkit
from clipkit.errors import ModelError
from clipkit.models.tuning import tune
from clipkit.recipe import ModelRecipe, Recipe
from tests.models.adapters.round_trip import METHODS, check_round_trip, slow_but_first
from tests.models.families import SENTENCES, SMALL, bert_tokenizer
from tests.models.one_tower import check_tower

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-clip-quickgelu": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "tiny-custom": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True},
    "tiny-eos": {
        "embed_dim": 24, "vision_cfg": VISION, "custom_text": True,
        "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407, "proj_bias": True},
    },
    "tiny-clipa": {  # as the real ones: the plain class, though its text tower looks both ways
        "embed_dim": 24, "vision_cfg": VISION | {"pool_type": "avg"},
        "text_cfg": TEXT | {"context_length": 16, "no_causal_mask": True, "pool_type": "last"},
    },
    "tiny-sigmoid": {
        "embed_dim": 24, "custom_text": True, "init_logit_bias": -10, "nonscalar_logit_scale": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT | {"context_length": 16, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "tiny-resnet": {"embed_dim": 24, "vision_cfg": VISION | {"layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT},
    "tiny-coca": {
        "embed_dim": 24, "custom_text": True,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"context_length": 20, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                           "attn_pooler_heads": 2},
    },
    "tiny-bert": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {}},
}  # fmt: skip
CUT = ("tiny-clip", "tiny-clip-quickgelu", "tiny-custom", "tiny-eos", "tiny-resnet", "tiny-bert")
LONG = "two dogs running through a low body of water " * 12
TEXTS = [*SENTENCES, LONG, "A  RED\nsquare!", "ééé ☃ !!!"]


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Register tiny architectures with open_clip during these tests."""
    from transformers import BertConfig

    folder = tmp_path_factory.mktemp("configs")
    bert, tokenizer = folder / "bert", bert_tokenizer()
    BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    CONFIGS["tiny-bert"]["text_cfg"] = {
        "hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler", "context_length": 40,
    }  # fmt: skip
    from open_clip import factory

    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    before = list(factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS[:] = before
    factory._rescan_model_configs()


def open_clip_model(name: str) -> tuple[Any, Any, Any]:
    """Return open_clip's model with the same random weights as clipkit's, its transform and its tokenizer."""
    torch.manual_seed(0)
    custom = name == "tiny-clipa"  # so that the parameters are drawn in the same order; the next test has the plain one
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained_text=False, force_custom_text=custom)
    return model.eval(), transform, open_clip.get_tokenizer(name)


@torch.inference_mode()
def features(model: Any, transform: Any, tokenizer: Any, images: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    # open_clip would interpolate the color indices of a palette image.
    pixels = torch.stack([transform(Image.open(image).convert("RGB")) for image in images])
    return (
        F.normalize(model.encode_image(pixels), dim=-1),
        F.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1),
    )


@pytest.mark.parametrize("name", list(CONFIGS))
def test_features_equal_open_clip(name: str, images: list[Path]) -> None:
    native, transform, tokenizer = open_clip_model(name)
    torch.manual_seed(0)
    model = clipkit.load(f"open_clip:{name}")
    image, text = features(native, transform, tokenizer, images)
    torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(TEXTS), text, rtol=0, atol=1e-5)
    tokens = model.text.tokenize(["x"])
    assert (tokens["input_ids"].shape[1] < model.text.tokenize.context_length) == (name in CUT)
    for text_alone, expected in zip(TEXTS, text, strict=True):
        torch.testing.assert_close(model.encode_text([text_alone])[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.logit_scale.detach(), native.logit_scale.detach().reshape(()))
    assert (model.logit_bias is not None) == (native.logit_bias is not None)
    assert not model.training


@pytest.mark.parametrize("name", list(CONFIGS))
def test_trained_model_opens_with_open_clip(
    name: str, recipe: Callable[..., Recipe], tmp_path: Path, images: list[Path]
) -> None:
    changes = {
        "model.name": f"open_clip:{name}",
        "train.epochs": 1,
        "train.micro_batch_size": 3,
        "optim.lr": 3e-3,
        "loss.name": "sigmoid" if name == "tiny-sigmoid" else "infonce",
    }
    clipkit.train(recipe(changes))
    tuned = clipkit.load(tmp_path / "run")
    saved = f"local-dir:{tmp_path / 'run' / 'model'}"
    native, transform = open_clip.create_model_from_pretrained(saved)
    image, text = features(native.eval(), transform, open_clip.get_tokenizer(saved), images)
    torch.testing.assert_close(tuned.encode_image(images), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(tuned.encode_text(TEXTS), text, rtol=0, atol=1e-5)
    torch.testing.assert_close(tuned.logit_scale.detach(), native.logit_scale.detach().reshape(()))
    torch.manual_seed(0)
    before = clipkit.load(f"open_clip:{name}")
    assert (tuned.encode_image(images) - before.encode_image(images)).abs().max() > 1e-4
    assert (tuned.encode_text(TEXTS) - before.encode_text(TEXTS)).abs().max() > 1e-4


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("method", ["frozen", "last:1", "head"])
def test_methods_train_a_part_of_the_tower(name: str, method: str) -> None:
    model = clipkit.load(f"open_clip:{name}")
    for tower in (model.image, model.text):
        tune(tower, method)
        learning = {key for key, value in tower.named_parameters() if value.requires_grad}
        assert bool(learning) == (method != "frozen")
        tune(tower, "full")
        assert learning < {key for key, value in tower.named_parameters() if value.requires_grad}


def test_folder_with_both_layouts_opens_with_transformers(tiny_clip: Path, tmp_path: Path) -> None:
    """Many repositories have both; the weights may exist for open_clip only."""
    folder = tmp_path / "both"
    clipkit.load("open_clip:tiny-clip").save(folder)
    shutil.copytree(tiny_clip, folder, dirs_exist_ok=True)
    assert clipkit.load(folder).backend.library == "transformers"
    (folder / "model.safetensors").unlink()
    assert clipkit.load(folder).backend.library == "open_clip"


@pytest.mark.parametrize(
    "name",
    [name if name in ("tiny-clip", "tiny-coca") else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS],
)
def test_one_tower_computes_the_same_features(name: str, images: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    clipkit.load(f"open_clip:{name}").save(tmp_path / "model")
    text = ("text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    check_tower(tmp_path / "model", "text", ("visual.",), images, tmp_path / "text")
    check_tower(tmp_path / "model", "image", text, images, tmp_path / "image")


def test_one_tower_of_a_checkpoint_of_a_tag_and_of_random_weights(
    tags: None, tmp_path: Path, images: list[Path]
) -> None:
    native, *_ = open_clip_model("tiny-clip")
    file = tmp_path / "epoch_3.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in native.state_dict().items()}}, file)
    for name in (f"open_clip:tiny-clip?weights={file}", "open_clip:tiny-clip/quick", "open_clip:tiny-clip"):
        pairs = []
        for only in (None, "image", "text"):
            torch.manual_seed(0)
            pairs.append(clipkit.load(name, only=only))
        whole, image, text = pairs
        torch.testing.assert_close(image.encode_image(images), whole.encode_image(images), rtol=0, atol=0)
        torch.testing.assert_close(text.encode_text(TEXTS), whole.encode_text(TEXTS), rtol=0, atol=0)
        assert image.image.preprocess.mean == whole.image.preprocess.mean
        assert (list(image.sides), list(text.sides)) == (["image"], ["text"])
    with pytest.raises(ModelError, match=f"{shrunk(file)}: .*open_clip:tiny-custom.*text.token_embedding"):
        clipkit.load(f"open_clip:tiny-custom?weights={shrunk(file)}", only="text")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_trainer_checkpoint_loads(tmp_path: Path, prefix: str, images: list[Path]) -> None:
    native, transform, tokenizer = open_clip_model("tiny-clip")
    file = tmp_path / "epoch_3.pt"
    weights = {prefix + key: value for key, value in native.state_dict().items()}
    torch.save(
        {"epoch": 3, "name": "mine", "state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}, file
    )
    model = clipkit.load(f"open_clip:tiny-clip?weights={file}")
    image, text = features(native, transform, tokenizer, images)
    torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(TEXTS), text, rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match=f"{file}: .* open_clip:tiny-custom"):
        clipkit.load(
            f"open_clip:tiny-resnet?weights={file}".replace("resnet", "custom").replace(str(file), str(shrunk(file)))
        )


def shrunk(file: Path) -> Path:
    """Overwrite the file with one weight of another shape."""
    content = torch.load(file, weights_only=True)
    key = next(key for key in content["state_dict"] if key.endswith("token_embedding.weight"))
    content["state_dict"][key] = torch.zeros(3, 3)
    torch.save(content, file)
    return file


def test_clipa_equals_open_clip(tmp_path: Path, images: list[Path]) -> None:
    native, _, transform = open_clip.create_model_and_transforms("tiny-clipa")
    assert type(native).__name__ == "CLIP"
    torch.save(native.state_dict(), tmp_path / "w.pt")
    model = clipkit.load(f"open_clip:tiny-clipa?weights={tmp_path / 'w.pt'}")
    image, text = features(native.eval(), transform, open_clip.get_tokenizer("tiny-clipa"), images)
    torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(TEXTS), text, rtol=0, atol=1e-5)
    visual = {name for name, _ in model.text.named_parameters() if "visual" in name}
    assert not visual


def test_trainer_checkpoint_with_a_bias_loads(tmp_path: Path, images: list[Path]) -> None:
    native, _, transform = open_clip.create_model_and_transforms("tiny-clip", init_logit_bias=-7.0)
    torch.save({"state_dict": {f"module.{k}": v for k, v in native.state_dict().items()}}, tmp_path / "epoch_1.pt")
    model = clipkit.load(f"open_clip:tiny-clip?weights={tmp_path / 'epoch_1.pt'}")
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -7.0
    model.save(tmp_path / "saved")
    assert clipkit.load(tmp_path / "saved").logit_bias.item() == -7.0  # type: ignore[union-attr]
    image, _ = features(native.eval(), transform, open_clip.get_tokenizer("tiny-clip"), images)
    torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-5)


def test_weights_of_another_image_size_are_refused(tmp_path: Path) -> None:
    native = open_clip.create_model("tiny-clip", force_image_size=64)
    torch.save(native.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"positional_embedding .*\(65, 32\) .*\(17, 32\)"):
        clipkit.load(f"open_clip:tiny-clip?weights={tmp_path / 'w.pt'}")


def test_code_in_a_model_folder_is_never_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clipkit.load("open_clip:tiny-clip").save(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("print('code has run')\nclass Tokenizer: pass\n")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="option trust_remote_code"):
        clipkit.load(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", None]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": auto_map}))
    with pytest.raises(ModelError, match="auto_map"):
        clipkit.load(tmp_path)
    assert "code has run" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-sigmoid", "tiny-resnet"])
def test_bfloat16_features_are_close(name: str, images: list[Path]) -> None:
    torch.manual_seed(0)
    full = clipkit.load(f"open_clip:{name}")
    torch.manual_seed(0)
    half = clipkit.load(f"open_clip:{name}", dtype=torch.bfloat16)
    for method, inputs in (("encode_image", images), ("encode_text", TEXTS)):
        features = getattr(half, method)(inputs)
        assert features.dtype == torch.float32
        assert (features * getattr(full, method)(inputs)).sum(dim=1).min() > 0.98


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code has run",))


def test_pickle_with_code_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "epoch_1.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Evil()}, file)
    with pytest.raises(ModelError, match=f"{file}: .*not opened") as caught:
        clipkit.load(f"open_clip:tiny-clip?weights={file}")
    assert "\n" not in str(caught.value)
    assert "code has run" not in capfd.readouterr().out
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match=f"{file}: cannot be read"):
        clipkit.load(f"open_clip:tiny-clip?weights={file}")
    torch.save([1, 2], file)
    with pytest.raises(ModelError, match=f"{file}: contains no weights"):
        clipkit.load(f"open_clip:tiny-clip?weights={file}")


@pytest.fixture
def tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register two tags, one trained with QuickGELU, for the architectures with and without it."""
    from open_clip import pretrained

    native, _, _ = open_clip_model("tiny-clip")
    file = tmp_path / "weights.pt"
    torch.save(native.state_dict(), file)
    cfgs = {"quick": {"file": str(file), "quick_gelu": True, "mean": (0.5, 0.5, 0.5)}, "plain": {"file": str(file)}}
    for name in ("tiny-clip", "tiny-clip-quickgelu"):
        monkeypatch.setitem(pretrained._PRETRAINED, name, cfgs)


def activations(model: Any) -> set[str]:
    return {type(m).__name__ for m in model.modules() if type(m).__name__ in ("GELU", "QuickGELU")}


def test_activation_and_preprocessing_come_from_the_tag(
    tags: None, tmp_path: Path, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="clipkit")
    assert activations(clipkit.load("open_clip:tiny-clip/plain")) == {"GELU"}
    assert not caplog.messages
    corrected = clipkit.load("open_clip:tiny-clip/quick")
    assert activations(corrected) == {"QuickGELU"}
    assert "QuickGELU" in caplog.messages[-1]
    assert corrected.image.preprocess.mean == (0.5, 0.5, 0.5)
    named = clipkit.load("open_clip:tiny-clip-quickgelu/quick")
    torch.testing.assert_close(corrected.encode_image(images), named.encode_image(images), rtol=0, atol=0)
    with pytest.raises(ModelError, match="QuickGELU.*use open_clip:tiny-clip/plain"):
        clipkit.load("open_clip:tiny-clip-quickgelu/plain")
    # What was corrected stays so when it is saved and opened again.
    corrected.save(tmp_path / "saved")
    again = clipkit.load(tmp_path / "saved")
    assert activations(again) == {"QuickGELU"}
    torch.testing.assert_close(again.encode_image(images), named.encode_image(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-23", "has no architecture ViT-B-23; did you mean ViT-B-32?"),
        ("open_clip:ViT-B-32/openia", "openia; did you mean openai?; .*: openai, "),
        ("open_clip:tiny-clip?weight=x", "give open_clip:ARCH/TAG, open_clip:ARCH or open_clip:ARCH.weights=FILE"),
        ("open_clip:tiny-clip?weights=", "give open_clip:ARCH/TAG"),
        ("open_clip:tiny-clip?/no/such.pt", "give open_clip:ARCH/TAG"),
        ("open_clip:tiny-clip/", "give open_clip:ARCH/TAG"),
        ("open_clip:tiny-clip?weights=/no/a+b.pt", "/no/a.b.pt not found"),
        ("open_clip:tiny-clip?weights=/no/such.pt", "/no/such.pt not found"),
    ],
)
def test_invalid_name_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("?", "[?]")) as caught:
        clipkit.load(name)
    assert "\n" not in str(caught.value)


def test_random_weights_print_no_warning(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import logging

    handlers = list(logging.getLogger().handlers)
    clipkit.load("open_clip:tiny-clip")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_every_architecture_of_open_clip_is_of_a_tested_kind(tmp_path: Path) -> None:
    """Every architecture of the installed version is of a kind that is tested above."""
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        assert {"embed_dim", "vision_cfg", "text_cfg"} <= set(config), name
        pool = config["text_cfg"].get("pool_type", "argmax")
        assert pool in ("argmax", "eos", "last", "first"), name
    saved = clipkit.load("open_clip:tiny-clip")
    saved.save(tmp_path)
    assert set(load_file(tmp_path / "open_clip_model.safetensors")) == set(open_clip_model("tiny-clip")[0].state_dict())


@pytest.mark.peer
def test_features_of_real_captions_equal_open_clip(flickr8k: Path) -> None:
    """Captions of Flickr8k, cut to 14 tokens on average, have the features of all 77 positions."""
    import csv

    with (flickr8k / "dev.csv").open(encoding="utf-8", newline="") as lines:
        captions = [row["caption"] for row in csv.DictReader(lines)][:256]
    native, _, tokenizer = open_clip_model("ViT-B-32")
    torch.manual_seed(0)
    model = clipkit.load("open_clip:ViT-B-32")
    with torch.inference_mode():
        expected = F.normalize(native.encode_text(tokenizer(captions)), dim=-1)
    torch.testing.assert_close(model.encode_text(captions), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("methods", slow_but_first(METHODS))
@pytest.mark.parametrize("name", slow_but_first(list(CONFIGS)))
def test_adapters(name: str, methods: tuple[str, str], tmp_path: Path, images: list[Path]) -> None:
    clipkit.load(f"open_clip:{name}").save(tmp_path / "base")
    check_round_trip(ModelRecipe(name=str(tmp_path / "base")), tmp_path, images, methods)
