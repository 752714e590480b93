"""Round trips from transformers to open_clip: equal bits, and equal features in both libraries."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import clipkit
from clipkit.errors import ModelError, OutputError
from clipkit.images import InMemory, open_image
from clipkit.models.export import export
from clipkit.models.export.samples import CAPTIONS, has_odd_margins, image_files
from clipkit.models.image_processors import processor_class, read_processor
from tests.models.families import SMALL, VISION, build, clip, save, sentencepiece_model


def vit_tiny_patch8_siglip_32(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A small SigLIP tower for timm's registry."""
    options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None), options.pop("cache_dir", None)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, class_token=False, **options
    )


timm.models.register_model(vit_tiny_patch8_siglip_32)


def siglip(folder: Path, activation: str = "gelu") -> Path:
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(sentencepiece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    text = SMALL | {"vocab_size": 200, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.SiglipConfig(
        text_config=text | {"num_hidden_layers": 3}, vision_config=VISION | {"hidden_act": activation}
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.5), model.logit_bias.fill_(-7.25)
    save(folder, model, tokenizer, processor_class("Siglip")(size={"height": 32, "width": 32}))
    return folder


def clip_of(activation: str, legacy: bool = False) -> Any:
    def make(folder: Path) -> Path:
        folder.mkdir()
        clip(folder, activation, legacy)
        return folder

    return make


SOURCES = {
    "quickgelu": clip_of("quick_gelu"),
    "gelu": clip_of("gelu"),
    "tanh": clip_of("gelu_pytorch_tanh"),
    "legacy": clip_of("gelu", legacy=True),
    "metaclip_2": lambda folder: build("metaclip_2", folder),
    "siglip": siglip,
}


def features_of_transformers(folder: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Features by the class that config.json names, from raw images and strings."""
    native = transformers.AutoModel.from_pretrained(folder).eval()
    processor = read_processor(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text_length = native.config.text_config.max_position_embeddings
    tokens = tokenizer(UNREPAIRED, padding="max_length", truncation=True, max_length=text_length, return_tensors="pt")
    if native.config.model_type == "siglip":  # it looks at its padding
        tokens.pop("attention_mask", None)
    pixels = processor([photo.convert("RGB") for photo in even_images()], return_tensors="pt")
    with torch.inference_mode():
        image, text = native.get_image_features(**pixels), native.get_text_features(**tokens)
    return image.pooler_output, text.pooler_output, native.logit_scale.item()


def features_of_open_clip(folder: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    native, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        image = native.eval().encode_image(torch.stack([preprocess(photo.convert("RGB")) for photo in even_images()]))
        return image, native.encode_text(tokenizer(UNREPAIRED)), native.logit_scale.item()


REPAIRED = ("curly quotes", "HTML entities", "full-width", "ligatures", "wrong encoding")
# open_clip repairs the others, transformers does not.
UNREPAIRED = [caption for kind, caption in CAPTIONS.items() if kind not in REPAIRED]


def even_images() -> list[Any]:
    opened = [open_image(InMemory(kind, content)) for kind, content in image_files(32).items()]
    return [image for image in opened if not has_odd_margins(image.size, 32, 32)]


@pytest.mark.parametrize("source", SOURCES)
def test_round_trip_keeps_every_weight_and_feature(source: str, tmp_path: Path) -> None:
    start = SOURCES[source](tmp_path / "start")
    there = export(clipkit.load(start), "open_clip", tmp_path / "there")
    back = export(clipkit.load(tmp_path / "there"), "transformers", tmp_path / "back")
    assert max(there.image_difference, there.text_difference, back.image_difference, back.text_difference) < 1e-5
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected = features_of_transformers(tmp_path / "start")
    for found in (features_of_open_clip(tmp_path / "there"), features_of_transformers(tmp_path / "back")):
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
        assert found[2] == expected[2]
    if source == "siglip":  # a pipeline would hand a mask on
        assert "attention_mask" not in transformers.AutoTokenizer.from_pretrained(tmp_path / "back")(["a"])
    if source != "legacy":  # whose end token's id was wrong, and is right now
        kinds = [
            json.loads((tmp_path / name / "config.json").read_text())["architectures"] for name in ("start", "back")
        ]
        assert kinds[0] == kinds[1]


def test_open_clip_architectures_open_with_transformers(tmp_path: Path) -> None:
    small = {"width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1, "mlp_ratio": 2.5}
    config = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": small | {"context_length": 20, "vocab_size": 49408}}
    for custom in (False, True):
        folder = tmp_path / f"open_clip_{custom}"
        native = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
        preprocess = {"size": 32, "mode": "RGB", "mean": [0.5] * 3, "std": [0.2] * 3, "fill_color": 0}
        set_model_preprocess_cfg(native, preprocess | {"interpolation": "bilinear", "resize_mode": "squash"})
        save_for_hf(
            native, _NoFiles(), config | ({"custom_text": True} if custom else {}), folder, safe_serialization=True
        )
        proof = export(clipkit.load(folder), "transformers", tmp_path / f"transformers_{custom}")
        assert max(proof.image_difference, proof.text_difference) < 1e-5
        expected, found = features_of_open_clip(folder), features_of_transformers(tmp_path / f"transformers_{custom}")
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


def test_siglip2_keeps_its_tokenizer_without_a_mask(tmp_path: Path) -> None:
    """Its tokenizer returns a mask by default, which the model was not trained with."""
    proof = export(clipkit.load(build("siglip2", tmp_path / "start")), "transformers", tmp_path / "out")
    assert proof.text_difference < 1e-5
    assert "attention_mask" not in transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(["a"])


class _NoFiles:
    def save_pretrained(self, folder: Path) -> None:
        """Write nothing: the vocabulary of CLIP comes with open_clip."""


def test_activation_missing_in_timm_needs_a_tolerance(tmp_path: Path) -> None:
    model = clipkit.load(siglip(tmp_path / "tanh", "gelu_pytorch_tanh"))
    with pytest.raises(ModelError, match=r"gelu_pytorch_tanh.*--tolerance"):
        export(model, "open_clip", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tanh"]
    proof = export(model, "open_clip", tmp_path / "there", tolerance=1e-2)
    assert 1e-5 < proof.image_difference < 1e-2
    assert "gelu_pytorch_tanh" in proof.notes[0]


def test_unsupported_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="open_clip has no architecture for AltCLIPModel"):
        export(clipkit.load(build("altclip", tmp_path / "altclip")), "open_clip", tmp_path / "out")
    odd = siglip(tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    config["vision_config"]["image_size"] = 64
    native = transformers.SiglipModel(transformers.SiglipConfig(**config))
    save(odd, native, processor_class("Siglip")(size={"height": 64, "width": 64}))
    model = clipkit.load(odd)
    with pytest.raises(ModelError, match=r"timm.* 2 layers of width 32, patches of 8 and images of 64 pixels"):
        export(model, "open_clip", tmp_path / "out")
    folder = clip_of("gelu")(tmp_path / "clip")
    model = clipkit.load(folder)
    with pytest.raises(ModelError, match="safetensors.*use one of transformers, open_clip"):
        export(model, "safetensors", tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        export(model, "open_clip", folder)
    assert not (tmp_path / "out").exists()


def test_options_missing_in_transformers_are_refused_by_name(tmp_path: Path) -> None:
    model = clipkit.load(clip_of("gelu")(tmp_path / "clip"))
    export(model, "open_clip", tmp_path / "open_clip")
    file = tmp_path / "open_clip" / "open_clip_config.json"
    config = json.loads(file.read_text())
    for section, key, value in (
        ("vision_cfg", "ls_init_value", 0.1),
        ("text_cfg", "pool_type", "first"),
        ("text_cfg", "no_causal_mask", True),
    ):
        model = clipkit.load(tmp_path / "open_clip")
        model.backend.config = json.loads(file.read_text())["model_cfg"]
        model.backend.config[section][key] = value
        with pytest.raises(ModelError, match=f"{key}|text pooling 'first'"):
            export(model, "transformers", tmp_path / "out")
    assert config["preprocess_cfg"]["resize_mode"] == "shortest"


def test_logit_bias_is_refused_by_clip_model(tmp_path: Path) -> None:
    model = clipkit.load(clip_of("gelu")(tmp_path / "clip"))
    export(model, "open_clip", tmp_path / "open_clip")
    model = clipkit.load(tmp_path / "open_clip")
    model.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))
    with pytest.raises(ModelError, match=r"logit bias \(-3\)"):
        export(model, "transformers", tmp_path / "out")


def test_wrong_weight_is_detected_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipkit.models.export import open_clip as target

    model = clipkit.load(clip_of("gelu")(tmp_path / "clip"))
    rules = target.clip_rules()
    swap = {"visual.ln_pre.bias": "visual.ln_post.bias", "visual.ln_post.bias": "visual.ln_pre.bias"}
    with torch.no_grad():
        model.backend.native.vision_model.post_layernorm.bias.fill_(0.5)
    wrong = [target_rule(rule, swap) for rule in rules]
    monkeypatch.setattr(target, "clip_rules", lambda: wrong)
    with pytest.raises(ModelError, match="features of the same images differ"):
        export(model, "open_clip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def target_rule(rule: Any, swap: dict[str, str]) -> Any:
    return type(rule)(
        tuple(swap.get(name, name) for name in rule.open_clip), rule.transformers, rule.turned, rule.leading
    )


def test_odd_margins_are_noted(tmp_path: Path) -> None:
    proof = export(clipkit.load(clip_of("gelu")(tmp_path / "clip")), "open_clip", tmp_path / "out")
    assert any("one pixel apart" in note for note in proof.notes)


def test_only_the_images_for_it_have_odd_margins() -> None:
    for side in (32, 224, 289, 384):
        sizes = {kind: open_image(InMemory(kind, content)).size for kind, content in image_files(side).items()}
        odd = {kind for kind, size in sizes.items() if has_odd_margins(size, side, side)}
        assert odd == {"odd margins", "odd margins, tall"}
