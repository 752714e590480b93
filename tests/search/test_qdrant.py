"""An index whose features are in Qdrant answers like exact search, and follows the index."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipkit
from clipkit.errors import DataError, UserError
from clipkit.models import DualEncoder
from clipkit.search import qdrant
from clipkit.search.nearest import Exact, unit_vectors


@pytest.fixture
def qdrant_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client's module; QDRANT_URL names a folder, for its local mode."""
    monkeypatch.setenv("QDRANT_URL", str(tmp_path / "server"))
    return pytest.importorskip("qdrant_client", reason="needs pip install 'clipkit-torch[qdrant]'")


@pytest.mark.usefixtures("qdrant_client")
def test_candidates_of_the_server_are_compared_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant, "LEAST_ROWS", 100)
    generator = np.random.default_rng(0)
    features = generator.standard_normal((900, 8)).astype(np.float32)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    name = qdrant.copy_of(features, "ab" * 32)
    engine, exact = qdrant.QdrantEngine(features, name), Exact(features)
    queries = unit_vectors(generator.standard_normal((5, 8)).astype(np.float32))
    half = np.arange(0, 900, 2)
    for rows in (None, half, half[:50]):
        scores, found = engine.top(queries, 10, rows)
        right_scores, right = exact.top(queries, 10, rows)
        assert found.tolist() == right.tolist()
        assert scores == pytest.approx(right_scores, abs=1e-6)
    assert qdrant.copy_of(features, "ab" * 32) == name
    qdrant.remove(name)
    with pytest.raises(DataError, match="clipkit-abab"):
        engine.top(queries, 10)


def test_an_index_is_searched_in_qdrant_and_its_old_collection_is_removed(
    shapes: Path, model: DualEncoder, tmp_path: Path, qdrant_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    clipkit.embed(shapes / "captions.csv", model, folder, qdrant=True)
    index = clipkit.Index(folder, model=model)
    assert isinstance(index.nearest, qdrant.QdrantEngine)
    assert index.manifest["engine"]["recall@10"] == 1
    few = tmp_path / "few.csv"
    lines = (shapes / "captions.csv").read_text().splitlines()
    few.write_text("\n".join([lines[0], *(f"{shapes}/{line}" for line in lines[1:21])]) + "\n")
    made = clipkit.embed(few, model, folder)
    client = qdrant_client.QdrantClient(path=str(tmp_path / "server"))
    assert [one.name for one in client.get_collections().collections] == [made.manifest["engine"]["collection"]]
    client.close()
    monkeypatch.delenv("QDRANT_URL")
    assert isinstance(clipkit.Index(folder, model=model).nearest, Exact)


@pytest.mark.usefixtures("qdrant_client")
def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9"):
        qdrant.copy_of(np.zeros((3, 4), np.float16), "ab" * 32)


def test_a_missing_server_or_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_URL", raising=False)
    with pytest.raises(UserError, match="QDRANT_URL"):
        qdrant.check_qdrant()
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"clipkit-torch\[qdrant\]"):
        qdrant.check_qdrant()
