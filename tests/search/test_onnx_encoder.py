"""Queries by the ONNX export of a model."""

from pathlib import Path

import pytest

import clipkit
from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.onnx_encoder import OnnxEncoder
from tests.search.cold import printed_without_torch


@pytest.mark.slow
def test_the_export_finds_what_the_model_finds(index_folder: Path, model: DualEncoder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    clipkit.export(model, "onnx", tmp_path / "onnx")
    index, exported = Index(index_folder, model=model), Index(index_folder, model=tmp_path / "onnx")
    for query in ("a red square", "the circle is blue"):
        assert [hit.row for hit in exported.search(query, k=5)] == [hit.row for hit in index.search(query, k=5)]
    found = index.image(3)
    assert exported.search(images=[found])[0].row == index.search(images=[found])[0].row
    assert isinstance(exported.model, OnnxEncoder)
    arguments = [str(index_folder), "a red square", "--model", str(tmp_path / "onnx")]
    assert index.search("a red square", k=1)[0].image in printed_without_torch(arguments)
