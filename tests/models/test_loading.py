import json
from pathlib import Path

import pytest

import clipkit
from clipkit.errors import ModelError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no such folder"),
        ("./missing", "there is no such folder"),
        ("nobody/nothing", "not in the Hub cache while offline"),
        ("my--model", "it is no name of a Hub repository"),
        ("~nosuchuser/x", "there is no such folder"),
        ("x" * 300, "no name of a Hub repository"),
        ("open_clip:none", "open_clip has no architecture none"),
    ],
)
def test_an_unknown_model_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        clipkit.load(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"needs clipkit.json \(clipkit\), open_clip_config.json \(open_clip\) or config.json"
    ):
        clipkit.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="type bert"):
        clipkit.load(tmp_path)


def test_a_broken_weight_file_is_one_line(tiny_clip: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_clip, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"{weights}: is no whole safetensors file .*fetch it again") as caught:
        clipkit.load(broken)
    assert "\n" not in str(caught.value)


def test_both_layouts_in_one_folder(tiny_clip: Path, tmp_path: Path) -> None:
    """As many repositories have them; weights may be there for open_clip alone."""
    import shutil

    import torch

    torch.manual_seed(0)
    folder = tmp_path / "both"
    clipkit.load("open_clip:ViT-B-32").save(folder)
    shutil.copytree(tiny_clip, folder, dirs_exist_ok=True)
    assert clipkit.load(folder).backend.library == "transformers"
    (folder / "model.safetensors").unlink()
    assert clipkit.load(folder).backend.library == "open_clip"
