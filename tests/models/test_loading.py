import json
from pathlib import Path

import pytest

import clipkit
from clipkit.errors import ModelError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no/such/folder: .*not found"),
        ("./missing", "./missing: folder not found"),
        ("nobody/nothing", "nobody/nothing: .*HF_HUB_OFFLINE"),
        ("my--model", "not a valid Hub repository name"),
        ("~nosuchuser/x", "~nosuchuser/x: folder not found"),
        ("x" * 300, "folder not found"),
        ("open_clip:none", "no architecture none"),
    ],
)
def test_unknown_model_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        clipkit.load(name)
    assert "\n" not in str(caught.value)


def test_folder_without_a_model_is_refused_with_the_needed_files(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"needs clipkit.json \(clipkit\), open_clip_config.json \(open_clip\) or config.json"
    ):
        clipkit.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="type bert"):
        clipkit.load(tmp_path)


def test_truncated_weights_are_refused_in_one_line(tiny_clip: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_clip, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        ModelError, match=f"{weights}: is not a complete safetensors file .*download it again"
    ) as caught:
        clipkit.load(broken)
    assert "\n" not in str(caught.value)


def test_folder_with_both_layouts_opens_with_transformers(tiny_clip: Path, tmp_path: Path) -> None:
    """Many repositories have both; the weights may exist for open_clip only."""
    import shutil

    import torch

    torch.manual_seed(0)
    folder = tmp_path / "both"
    clipkit.load("open_clip:ViT-B-32").save(folder)
    shutil.copytree(tiny_clip, folder, dirs_exist_ok=True)
    assert clipkit.load(folder).backend.library == "transformers"
    (folder / "model.safetensors").unlink()
    assert clipkit.load(folder).backend.library == "open_clip"
