"""A source tree works without the metadata of an installed package."""

import importlib.metadata
from pathlib import Path

import pytest

import clipkit
from clipkit.evaluation.result import versions
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.versions import installed_version


def test_versions_without_metadata(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions()
    assert before["clipkit"] == clipkit.__version__
    assert {"torch", "transformers", "pillow"} <= set(before)
    tower = clipkit.load(tiny_clip).text
    fingerprint = tower_fingerprint(tower)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert installed_version("torch") is None
    assert versions() == {name: before[name] for name in ("clipkit", "python")}
    assert tower_fingerprint(tower) != fingerprint
