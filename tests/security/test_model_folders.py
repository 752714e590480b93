"""The configuration of a model folder cannot choose kernels or code."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import clipkit
from clipkit.errors import ModelError


def changed(tiny_clip: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(tiny_clip, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        part, dot, name = key.rpartition("__")
        (config[part] if dot else config)[name if dot else key] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["org/kernel", "org/kernel@main:layer", "flash_attention_2", "paged|org/kernel"])
def test_an_attention_from_a_repository_is_refused(
    key: str, value: str, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", None)
    folder = changed(tiny_clip, tmp_path / "model", **{key: value})
    with pytest.raises(ModelError, match=f"sets {key} to '.*eager, sdpa") as caught:
        clipkit.load(str(folder))
    assert value in str(caught.value)


@pytest.mark.parametrize("value", ["org/kernel", {"": "org/kernel"}, {"text_config": "org/kernel"}])
def test_a_part_of_a_configuration_cannot_choose_it_either(value: Any, tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    changed(tiny_clip, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["attn_implementation"] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="org/kernel"):
        clipkit.load(str(folder))


def test_attentions_of_pytorch_are_allowed(tiny_clip: Path, tmp_path: Path) -> None:
    for value in ("eager", "sdpa", None):
        clipkit.load(str(changed(tiny_clip, tmp_path / str(value), _attn_implementation=value)))


def test_code_in_a_model_folder_is_not_run(tiny_clip: Path, tmp_path: Path) -> None:
    maps = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    folder = changed(tiny_clip, tmp_path / "model", auto_map=maps, trust_remote_code=True)
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )
    for name, entry in (("preprocessor_config.json", "AutoImageProcessor"), ("tokenizer_config.json", "AutoTokenizer")):
        values = json.loads((folder / name).read_text())
        entries = [None, "evil.Config"] if entry == "AutoTokenizer" else "evil.Config"
        (folder / name).write_text(json.dumps(values | {"auto_map": {entry: entries}, "trust_remote_code": True}))
    with contextlib.suppress(ModelError):
        clipkit.load(str(folder))
    assert not (tmp_path / "ran").exists()
    unknown = changed(tiny_clip, tmp_path / "unknown", auto_map=maps, model_type="evil")
    shutil.copy(folder / "evil.py", unknown)
    with pytest.raises(ModelError, match="evil"):
        clipkit.load(str(unknown))
    assert not (tmp_path / "ran").exists()
