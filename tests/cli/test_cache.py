"""`clipkit cache` on the command line."""

import os
import sys
from pathlib import Path

import pytest
import torch

from clipkit.cli import main
from clipkit.embedding.cache import FeatureCache
from clipkit.embedding.store_folder import Machine, build_store, open_store
from clipkit.processes import Processes


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["clipkit", "cache", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return printed.out if not ended.value.code else f"{ended.value.code}: {printed.err}"


def test_list_size_and_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path))
    assert "nothing is stored" in called(monkeypatch, capsys, "list")
    machine = Machine.of(Processes.alone())
    for key in ("inuse", "older"):
        about = {"what": "outputs of the image tower", "data": "photos.csv", "items": "9 images", "dtype": "float32"}
        build_store(key, machine, 9, lambda writer, share: writer.append({"x": torch.zeros(9, 1000)}), about)
        os.utime(tmp_path / "stored" / key / ".lock", times=(1, 1))
    FeatureCache(tmp_path / "tower").add([bytes(32)], torch.zeros(1, 1000))
    held = open_store("inuse", machine)
    listed = called(monkeypatch, capsys, "list")
    assert all(word in listed for word in ("inuse", "older", "photos.csv", "9 images", "features of one tower", "now"))
    assert "stored inputs of towers: 7" in called(monkeypatch, capsys, "size")
    assert called(monkeypatch, capsys, "prune").startswith("2: ")
    assert "5XB" in called(monkeypatch, capsys, "prune", "--to-size", "5XB")
    called(monkeypatch, capsys, "prune", "--older-than", "30")
    assert sorted(folder.name for folder in tmp_path.glob("*/*") if folder.is_dir()) == ["inuse"]
    assert (tmp_path / "tower").is_dir()
    called(monkeypatch, capsys, "prune", "--to-size", "0.04MB")
    assert not (tmp_path / "tower").is_dir()
    assert "in use" in called(monkeypatch, capsys, "prune", "--all")
    del held
    called(monkeypatch, capsys, "prune", "--all")
    assert "nothing is stored" in called(monkeypatch, capsys, "list")
