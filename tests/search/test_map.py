"""The map keeps groups together, and is made once for the features of an index."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from clipkit.errors import DataError
from clipkit.search import Index
from clipkit.search.layout import write_manifest
from clipkit.search.map import SEED, colors_of, map_of, positions_of

pytest.importorskip("sklearn")


@pytest.fixture
def folder(index_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(index_folder, tmp_path / "index")


def test_groups_stay_together() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(60) % 3
    features = torch.randn(3, 16, generator=generator)[groups] + 0.2 * torch.randn(60, 16, generator=generator)
    positions = torch.from_numpy(positions_of(features.numpy()))
    assert positions.shape == (60, 2)
    assert (positions.amin(), positions.amax()) == (0, 1)
    nearest = torch.cdist(positions, positions).fill_diagonal_(9).argmin(dim=1)
    assert (groups[nearest] == groups).all()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6])
def test_few_images_have_positions(count: int) -> None:
    positions = positions_of(np.eye(8, dtype=np.float32)[:count])
    assert positions.shape == (count, 2)
    assert np.isfinite(positions).all()


def test_a_map_is_made_once_and_again_for_other_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(folder)
    made = map_of(index)
    assert made.rows.tolist() == list(range(16))
    file = next(folder.glob("map-*.parquet"))
    assert index.manifest["files"]["features"]["sha256"][:16] in file.name
    metadata = parquet.read_schema(file).metadata
    assert metadata[b"seed"] == str(SEED).encode()
    assert metadata[b"features"] == index.manifest["files"]["features"]["sha256"].encode()
    calls = []
    monkeypatch.setattr("clipkit.search.map.positions_of", lambda features: calls.append(1) or made.positions)
    assert (map_of(Index(folder)).positions == made.positions).all()
    assert not calls
    file.write_bytes(file.read_bytes()[:100])
    map_of(Index(folder))
    parquet.write_table(parquet.read_table(file).slice(0, 3), file)
    map_of(Index(folder))
    assert len(calls) == 2
    assert [one.name for one in folder.glob("*map*")] == [file.name]
    write_manifest(folder, index.manifest)  # as clipkit.embed does
    assert not file.exists()


def test_a_large_index_is_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.search.map.MOST", 6)
    made = map_of(Index(folder))
    assert made.rows.tolist() == [0, 3, 6, 9, 12, 15]
    assert len(made.positions) == 6


def test_a_folder_that_cannot_be_written_has_a_map(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("clipkit.search.map.write_whole", refuse)
    monkeypatch.setattr("clipkit.search.map.positions_of", lambda features: np.zeros((16, 2), np.float32))
    with caplog.at_level(logging.WARNING):
        assert len(map_of(Index(folder)).rows) == 16
    assert "Permission denied" in caplog.text
    assert not list(folder.glob("*map*"))


def test_colors_are_the_most_frequent_labels(index_folder: Path) -> None:
    index = Index(index_folder)
    names, numbers = colors_of(index, "color", np.array([0, 1, 2, 4, 5, 8]))
    assert (names, numbers) == (["red", "green", "blue"], [0, 0, 0, 1, 1, 2])
    with pytest.raises(DataError, match="hue"):
        colors_of(index, "hue", np.arange(3))
