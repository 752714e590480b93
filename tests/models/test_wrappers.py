"""Weights saved from a wrapped model, beside adapters, or as a program."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor

import clipkit
from clipkit.errors import ModelError
from clipkit.models import compose
from clipkit.models.wrappers import unwrapped
from clipkit.recipe import ImageTowerRecipe, ModelRecipe, TextTowerRecipe
from tests.models.families import SMALL, bert_tokenizer

ADAPTER = {"text_model.lora_A.weight": torch.ones(2), "text_model.lora_B.weight": torch.ones(2)}


@pytest.fixture(scope="module")
def saved_by_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}
    text = {"width": 64, "heads": 1, "layers": 1, "context_length": 20}
    config: dict[str, Any] = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


def changed(
    folder: Path, copy: Path, rename: Callable[[str], str], more: dict[str, Tensor] | None = None, pickled: bool = False
) -> Path:
    """Copy a model and rename its tensors."""
    shutil.copytree(folder, copy)
    file = next(copy.glob("*.safetensors"))
    tensors = {rename(name): value for name, value in load_file(file).items()} | (more or {})
    if pickled:
        file.unlink()
        transformers_name = file.name == "model.safetensors"
        torch.save(tensors, copy / ("pytorch_model.bin" if transformers_name else "open_clip_pytorch_model.bin"))
    else:
        save_file(tensors, file, {"format": "pt"})
    return copy


WRAPPERS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "nested": lambda name: f"module._orig_mod.{name}",
    "adapters": lambda name: f"base_model.model.{name}",
    "nested adapters": lambda name: f"_orig_mod.module.base_model.model.{name}",
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}",
    "inside": lambda name: ".".join([*name.split(".")[:1], *(["_orig_mod"] * ("." in name)), *name.split(".")[1:]]),
}


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("pickled", [False, True])
def test_wrappers_are_taken_off(
    wrapper: str, layout: str, pickled: bool, tiny_clip: Path, saved_by_open_clip: Path, tmp_path: Path
) -> None:
    folder = tiny_clip if layout == "transformers" else saved_by_open_clip
    copy = changed(folder, tmp_path / "copy", WRAPPERS[wrapper], pickled=pickled)
    expected, loaded = (clipkit.load(each, device="cpu").state_dict() for each in (folder, copy))
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_unknown_prefix_is_named(layout: str, tiny_clip: Path, saved_by_open_clip: Path, tmp_path: Path) -> None:
    folder = tiny_clip if layout == "transformers" else saved_by_open_clip
    copy = changed(folder, tmp_path / "copy", lambda name: f"student.clip.{name}")
    with pytest.raises(ModelError, match=r"student\.clip\."):
        clipkit.load(copy, device="cpu")


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_adapters_beside_the_weights_are_named_once(
    layout: str, tiny_clip: Path, saved_by_open_clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_clip if layout == "transformers" else saved_by_open_clip
    copy = changed(folder, tmp_path / "copy", str, ADAPTER)
    with caplog.at_level(logging.WARNING):
        clipkit.load(copy, device="cpu")
    assert [record for record in caplog.records if "lora_A" in record.getMessage()] == caplog.records
    assert len(caplog.records) == 1


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_adapters_around_the_weights_are_refused(
    layout: str, tiny_clip: Path, saved_by_open_clip: Path, tmp_path: Path
) -> None:
    folder = tiny_clip if layout == "transformers" else saved_by_open_clip
    copy = changed(folder, tmp_path / "copy", lambda name: f"base_model.model.{name.replace('ln_', 'base_layer.ln_')}")
    file = next(copy.glob("*.safetensors"))
    save_file({"base_model.model.a.base_layer.weight": torch.ones(2)} | load_file(file), file, {"format": "pt"})
    with pytest.raises(ModelError, match="merge_and_unload"):
        clipkit.load(copy, device="cpu")


def test_deeper_model_does_not_load_into_open_clip(saved_by_open_clip: Path, tmp_path: Path) -> None:
    copy = changed(saved_by_open_clip, tmp_path / "copy", str, {"transformer.resblocks.1.ln_1.bias": torch.ones(64)})
    with pytest.raises(ModelError, match=r"resblocks\.1\.ln_1"):
        clipkit.load(copy, device="cpu")


def test_text_tower_of_a_composed_model_loses_its_wrapper(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64)
    transformers.BertModel(config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    copy = changed(tmp_path / "text", tmp_path / "copy", WRAPPERS["nested adapters"])
    expected, loaded = (
        compose(ModelRecipe(text=TextTowerRecipe(name=str(folder)))).text.trunk.state_dict()
        for folder in (tmp_path / "text", copy)
    )
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_image_tower_of_a_composed_model_names_its_wrapper(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_vit", num_classes=0), str(tmp_path / "image"), safe_serialization=True)
    for number, rename in enumerate((WRAPPERS["compiled"], WRAPPERS["data parallel"])):
        copy = changed(tmp_path / "image", tmp_path / f"copy{number}", rename)
        compose(ModelRecipe(image=ImageTowerRecipe(name=str(copy))))
    copy = changed(tmp_path / "image", tmp_path / "copy", WRAPPERS["adapters"])
    with pytest.raises(ModelError, match=r"base_model\.model"):
        compose(ModelRecipe(image=ImageTowerRecipe(name=str(copy))))


def torch_script(file: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(file))


def test_other_contents_are_named(tiny_clip: Path, saved_by_open_clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch_script(file)
    assert "TorchScript" in (message := refused(f"open_clip:ViT-B-32?weights={file}"))
    assert "openai" in message
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(f"open_clip:ViT-B-32?weights={file}")
    for folder, name in ((tiny_clip, "pytorch_model.bin"), (saved_by_open_clip, "open_clip_pytorch_model.bin")):
        copy = shutil.copytree(folder, tmp_path / name)
        next(copy.glob("*.safetensors")).unlink()
        torch_script(copy / name)
        assert "TorchScript" in refused(copy)
    copy = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": load_file(tiny_clip / "model.safetensors"), "epoch": 3}, copy / "pytorch_model.bin")
    assert "state_dict, epoch" in refused(copy)


def test_adapter_files_beside_a_model_are_named(
    tiny_clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(tiny_clip, tmp_path / "copy")
    (copy / "adapter_config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        clipkit.load(copy, device="cpu")
    assert caplog.text.count("adapter_config.json") == 1
    (copy / "model.safetensors").unlink()
    assert "only adapters" in refused(copy)


def test_messages_advise_a_download_only_where_it_helps(tiny_clip: Path, tmp_path: Path) -> None:
    copy = changed(tiny_clip, tmp_path / "copy", lambda name: name.replace("visual_projection", "other"))
    assert "visual_projection.weight" in (message := refused(copy))
    assert "download" not in message


def refused(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        clipkit.load(name, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["text_model.module_norm.weight", "modules.0.weight", "base_model.encoder.weight"])
def test_similar_names_stay(name: str) -> None:
    assert unwrapped(name) == name
