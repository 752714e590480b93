"""Parts of a model that do not fit each other are refused when it is loaded, in one line."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers

import clipkit
from clipkit.errors import ModelError
from clipkit.models import compose
from clipkit.recipe import ImageTowerRecipe, ModelRecipe, TextTowerRecipe
from tests.conftest import clip_vocabulary
from tests.models.families import FAMILIES, SMALL, bert_tokenizer, build

_NULL = pytest.mark.skipif(
    not hasattr(transformers, "CLIPImageProcessorPil"), reason="transformers before 5.4 replaces null by a default"
)
_TOKENIZER = ("tokenizer", "vocab", "merges", "special", "added", "spiece", "sentencepiece")


@pytest.fixture
def model(tiny_clip: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_clip, tmp_path / "model")


@pytest.fixture(scope="module")
def saved_by_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of open_clip whose tokenizer is in the same folder."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}
    text = {"width": 64, "heads": 1, "layers": 1, "context_length": 20, "vocab_size": 49408}
    config: dict[str, Any] = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}
    torch.save(open_clip.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    written = {"model_cfg": config, "preprocess_cfg": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        clipkit.load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep_settings", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "clip_legacy"])
def test_missing_vocabulary_is_refused(family: str, keep_settings: bool, tmp_path: Path) -> None:
    folder = build(family, tmp_path / family)
    for file in folder.iterdir():
        if file.name.startswith(_TOKENIZER) and not (keep_settings and file.name == "tokenizer_config.json"):
            file.unlink()
    assert "tokenizer.json" in refused(folder)


def test_vocabulary_without_merges_is_refused(model: Path) -> None:
    vocabulary, merges = clip_vocabulary(2000)
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(vocabulary))
    assert "merges.txt" in refused(model)
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    clipkit.load(model, device="cpu")


def test_added_tokens_need_embeddings(model: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(model)
    assert f"{rows + 1}" in refused(model)
    native = transformers.CLIPModel.from_pretrained(model)
    native.text_model.embeddings.token_embedding = torch.nn.Embedding(rows + 2, 32)
    native.config.text_config.vocab_size = rows + 2
    native.save_pretrained(model)
    clipkit.load(model, device="cpu")


def test_added_tokens_without_a_vocabulary_are_refused(model: Path) -> None:
    tokenizer = transformers.CLIPTokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save_pretrained(model)
    assert "52 tokens" in refused(model)


def test_added_token_that_replaces_the_end_of_captions_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first CLIP models take the features of the token with the highest ID."""
    folder = build("clip_legacy", tmp_path / "legacy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    native = transformers.CLIPModel.from_pretrained(folder)
    native.text_model.embeddings.token_embedding = torch.nn.Embedding(len(tokenizer), SMALL["hidden_size"])
    native.config.text_config.vocab_size = len(tokenizer)
    native.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        clipkit.load(folder, device="cpu")
    assert caplog.text.count("highest ID") == 1


def test_end_token_of_another_tokenizer_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (model / "config.json").write_text(json.dumps(config))
    assert "token 7" in refused(model)


@pytest.mark.parametrize("other", ["bert", "fewer merges"])
def test_tokenizer_of_another_model_is_refused(other: str, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    if other == "bert":
        bert_tokenizer().save_pretrained(model)
    else:
        vocabulary, merges = clip_vocabulary(300)
        transformers.CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges]).save_pretrained(model)
    assert "tokens" in refused(model)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [(49408, 49408), (30522, 32000), (250100, 250112), (32100, 32128), (50257, 50304), (128001, 128100), (31, 64)],
)
def test_padded_embeddings_are_accepted(tokens: int, rows: int) -> None:
    from clipkit.models.fit import check_fit

    check_fit(None, _TextTower(tokens, rows), "model")  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokens", "rows"), [(30522, 49408), (32100, 49408), (49408, 30522), (5, 250002), (5, 1014)])
def test_embeddings_of_another_tokenizer_are_refused(tokens: int, rows: int) -> None:
    from clipkit.models.fit import check_fit

    with pytest.raises(ModelError, match=f"{rows}"):
        check_fit(None, _TextTower(tokens, rows), "model")  # type: ignore[arg-type]


class _TextTower:
    def __init__(self, tokens: int, rows: int) -> None:
        native = transformers.BertModel(
            transformers.BertConfig(hidden_size=1, num_hidden_layers=0, num_attention_heads=1, vocab_size=rows)
        )
        self.trunk = torch.nn.ModuleDict({"native": native})
        self.trunk.native = native
        self.tokenize = _Tokenizer(tokens)


class _Tokenizer:
    def __init__(self, tokens: int) -> None:
        self.native = self
        self.vocab_size = tokens
        self.all_special_ids = (0, 1)

    def __len__(self) -> int:
        return self.vocab_size


def test_open_clip_folder_with_an_empty_tokenizer_is_refused(saved_by_open_clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved_by_open_clip, tmp_path / "model")
    clipkit.load(folder, device="cpu")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    assert "tokenizer" in refused(folder)
    bert_tokenizer().save_pretrained(folder)
    assert "49408" in refused(folder)


def test_composed_tower_checks_its_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    tokenizer = bert_tokenizer()
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = ModelRecipe(text=TextTowerRecipe(name=str(folder)))
    compose(recipe)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{len(tokenizer)} tokens|IDs up to {len(tokenizer) - 1}"):
        compose(recipe)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"vocab\.txt"):
        compose(recipe)


@pytest.mark.parametrize(
    "values",
    [
        {"crop_size": {"height": 48, "width": 48}},
        {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 48}},
        {"crop_size": {"height": 48, "width": 32}},
        {"do_center_crop": False},
        {"do_center_crop": False, "do_resize": False},
        {"size": {"longest_edge": 32}},
        pytest.param({"size": None}, marks=_NULL),
        {"crop_size": None},
        pytest.param({"image_mean": None}, marks=_NULL),
        {"image_mean": [0.5]},
        {"image_std": [0, 0, 0]},
        {"resample": 77},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_preprocessing_that_does_not_fit_is_refused(model: Path, values: dict[str, Any]) -> None:
    change(model / "preprocessor_config.json", **values)
    assert "preprocess" in (message := refused(model)) or "40" in message or "48" in message


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("siglip", {"size": {"height": 64, "width": 64}}),
        ("siglip", {"do_resize": False}),
        ("siglip2", {"patch_size": 16}),
        ("chinese_clip", {"size": {"height": 48, "width": 48}}),
        ("altclip", {"crop_size": {"height": 64, "width": 64}}),
        ("metaclip_2", {"do_center_crop": False}),
        ("vision_text_dual_encoder", {"size": {"height": 48, "width": 48}}),
    ],
)
def test_preprocessing_of_every_family_is_checked(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    folder = build(family, tmp_path / family)
    change(folder / "preprocessor_config.json", **values)
    assert "image preprocessing" in refused(folder)


def test_convolutional_towers_accept_other_sizes(tmp_path: Path) -> None:
    folder = build("align", tmp_path / "align")
    size = {"height": 48, "width": 48}
    change(folder / "preprocessor_config.json", crop_size=size, size={"height": 60, "width": 60})
    assert clipkit.load(folder, device="cpu").image.preprocess.image_size == 48


@pytest.mark.parametrize("values", [{"resize_mode": "other"}, {"interpolation": "other"}, {"std": [0.0, 0.0, 0.0]}])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_open_clip_preprocessing_is_checked(values: dict[str, Any], saved_by_open_clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved_by_open_clip, tmp_path / "model")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= values
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert "preprocess" in refused(folder)


def test_timm_tower_with_another_image_size_is_refused() -> None:
    image = ImageTowerRecipe(name="timm:mixer_s32_224", pretrained=False, image_size=96)
    with pytest.raises(ModelError, match="96"):
        compose(ModelRecipe(image=image))


def test_check_runs_no_forward_pass_of_a_tower(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object, **__: object) -> None:
        raise AssertionError("a tower ran")

    monkeypatch.setattr(transformers.models.clip.modeling_clip.CLIPVisionEmbeddings, "forward", forward)
    monkeypatch.setattr(transformers.models.clip.modeling_clip.CLIPTextEmbeddings, "forward", forward)
    clipkit.load(model, device="cpu")
