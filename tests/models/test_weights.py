"""Weight files that are truncated, lead out of their folder, or contain code."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipkit
from clipkit.errors import ModelError


@pytest.fixture
def model(tiny_clip: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_clip, tmp_path / "model")


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        clipkit.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_shards(folder: Path) -> Path:
    """Split the weights into two files with an index, as transformers does. Return the index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, names_of_half in halves.items():
        save_file({name: tensors[name] for name in names_of_half}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, names_of_half in halves.items() for name in names_of_half}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def as_pickle(folder: Path, change: Callable[[dict[str, Any]], None] = lambda tensors: None) -> Path:
    tensors: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_shards_and_safe_pickles_load(model: Path, tiny_clip: Path, tmp_path: Path) -> None:
    expected = clipkit.load(tiny_clip).encode_text(["a red square"])
    pickled = shutil.copytree(model, tmp_path / "pickled")
    as_pickle(pickled)
    as_shards(model)
    for folder in (model, pickled):
        torch.testing.assert_close(clipkit.load(folder).encode_text(["a red square"]), expected, rtol=0, atol=1e-6)


def test_pickle_with_code_is_refused_and_not_run(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "code has run"
    file = as_pickle(model, lambda tensors: tensors.update(more=Evil(mark)))
    assert f"{file}: contains objects other than tensors" in refused(model)
    file.write_bytes(pickle.dumps(Evil(mark)))  # not of torch.save at all
    assert f"{file}: is not a PyTorch checkpoint that contains only tensors" in refused(model)
    assert not mark.exists()


def test_safetensors_are_preferred_to_pickles(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    clipkit.load(model)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "sub/file.safetensors", "..", "", 7, "a\\b"])
def test_index_with_paths_out_of_the_folder_is_refused(model: Path, tmp_path: Path, name: object) -> None:
    (tmp_path / "other.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    index = as_shards(model)
    content = json.loads(index.read_text())
    content["weight_map"][min(content["weight_map"])] = name
    index.write_text(json.dumps(content))
    assert f"{index}: refers to {name!r} outside of its folder" in refused(model)


def test_missing_and_truncated_files_are_named(model: Path) -> None:
    index = as_shards(model)
    shard = model / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert f"{shard}: is not a complete safetensors file" in refused(model)
    shard.unlink()
    assert f"{index}: refers to {shard.name}, which is missing" in refused(model)
    index.write_text("{")
    assert f"{index}: is not a valid weight index" in refused(model)
    index.unlink()
    assert f"{model}: has no weights; the folder needs the file model.safetensors" in refused(model)


def test_code_in_a_model_folder_is_never_run(model: Path) -> None:
    config = model / "tokenizer_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    (model / "evil.py").write_text("raise SystemExit('code has run')")
    assert f"{config}: asks to run custom code (auto_map)" in refused(model)
    config.write_text(json.dumps(values))
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoModel": "evil.Model"}}))
    clipkit.load(model)  # its class comes from transformers, regardless of the map
