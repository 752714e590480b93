"""Search against naive loops, and everything that a query can ask."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipkit.errors import DataError, UserError
from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.nearest import Exact, as_float32, best_of, unit_vectors
from clipkit.search.where import rows_where
from tests.search.cold import printed_without_torch


@pytest.fixture
def index(index_folder: Path, model: DualEncoder) -> Index:
    return Index(index_folder, model=model)


def test_exact_search_is_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.search.nearest._TILE", 4)
    monkeypatch.setattr("clipkit.search.nearest._TILES", 2)
    generator = np.random.default_rng(0)
    features = generator.integers(-2, 3, (50, 3)).astype(np.float16)  # many equal scores
    queries = generator.integers(-2, 3, (4, 3)).astype(np.float32)
    rows = np.flatnonzero(generator.random(50) < 0.6)
    for allowed in (None, rows):
        scores, found = Exact(features).top(queries, 9, allowed)
        for query, own_scores, own in zip(queries.tolist(), scores.tolist(), found.tolist(), strict=True):
            candidates = range(50) if allowed is None else allowed.tolist()
            ranked = [
                (-sum(a * b for a, b in zip(query, features[row].tolist(), strict=True)), row) for row in candidates
            ]
            assert own == [row for _, row in sorted(ranked)[:9]]
            assert own_scores == [-score for score, _ in sorted(ranked)[:9]]
    assert Exact(features).top(queries, 9, np.array([3, 5]))[1].shape == (4, 2)
    assert Exact(features).top(queries[:0], 9)[1].shape == (0, 9)


@pytest.mark.parametrize("has_torch", [True, False])
def test_all_numbers_of_half_precision_are_converted_exactly(has_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_torch:
        monkeypatch.delitem(sys.modules, "torch")
    numbers = np.arange(65_536, dtype=np.uint16).view(np.float16).reshape(16, -1)
    for features in (numbers, np.frombuffer(numbers.tobytes(), np.float16)):  # writable and not
        found = as_float32(features)
        assert found.dtype == np.float32
        assert found.shape == features.shape
        assert np.array_equal(found, features.astype(np.float32), equal_nan=True)


def test_vectors_may_be_arrays_tensors_or_lists(index: Index, model: DualEncoder) -> None:
    features = model.encode_text(["a red square", "snow"])
    expected = [[hit.row for hit in index.search(text, k=3)] for text in ("a red square", "snow")]
    with_gradient = features.clone().requires_grad_()
    for vectors in (features, features.numpy(), features.double(), features.tolist(), with_gradient):
        assert [[hit.row for hit in hits] for hits in index.search_vectors(vectors, k=3)] == expected
    assert index.search_vectors(features.bfloat16(), k=1)[0][0].row == expected[0][0]


@pytest.mark.parametrize("vectors", [[[1.0, 2.0], [3.0]], [["a", "b"]], [object()]])
def test_vectors_that_are_no_numbers_are_refused(index: Index, vectors: Any) -> None:
    with pytest.raises(DataError, match="vectors is not a matrix"):
        index.search_vectors(vectors)


def test_a_damaged_feature_is_found_among_equal_scores() -> None:
    scores = np.array([[0.5, 0.5, 0.5, 1, np.nan, 0.1], [np.nan, 1, 0.5, 0.5, 0.5, 0]], np.float32)
    best, rows = best_of(scores, np.broadcast_to(np.arange(6), (2, 6)), 3)
    assert rows.tolist() == [[4, 3, 0], [0, 1, 2]]
    assert np.isinf(best[:, 0]).all()


def test_equal_images_have_equal_scores() -> None:
    generator = np.random.default_rng(0)
    feature = unit_vectors(generator.standard_normal((1, 64)).astype(np.float32)).astype(np.float16)
    for count in (1, 16, 37, 300, 1024):
        queries = unit_vectors(generator.standard_normal((3, 64)).astype(np.float32))
        scores, rows = Exact(np.repeat(feature, count, axis=0)).top(queries, count)
        assert rows.tolist() == [list(range(count))] * 3
        assert (scores == scores[:, :1]).all()


def test_searching_waits_for_the_import_of_torch_by_another_thread() -> None:
    code = """
import threading, sys
import numpy as np
from clipkit.search.nearest import Exact
exact = Exact(np.ones((3, 2), np.float16))
assert "torch" not in sys.modules
importing = threading.Thread(target=lambda: __import__("torch"))
importing.start()
while importing.is_alive():
    exact.top(np.ones((1, 2), np.float32), 2)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)


def test_a_query_is_a_weighted_sum(index: Index, model: DualEncoder, table: Path) -> None:
    image = table.parent / "images" / "05.png"
    query = model.encode_text(["a red square"])[0] + 0.5 * model.encode_text(["snow"])[0]
    query = query - model.encode_text(["a circle"])[0] + model.encode_image([image])[0]
    scores = torch.from_numpy(index.features.astype(np.float32)) @ torch.nn.functional.normalize(query, dim=0)
    hits = index.search(["a red square", "0.5 * snow"], minus="a circle", images=image, k=4)
    assert [hit.row for hit in hits] == scores.argsort(descending=True)[:4].tolist()
    assert [hit.score for hit in hits] == pytest.approx(scores.sort(descending=True).values[:4].tolist(), abs=1e-5)
    same = index.search({"a red square": 1, "snow": 0.5, "a circle": -1}, images=[image], k=4)
    assert [hit.row for hit in same] == [hit.row for hit in hits]


def test_like_finds_the_others_and_needs_no_model(index_folder: Path) -> None:
    index = Index(index_folder, model="nowhere/model")
    hits = index.search(like="images/05.png", k=15)
    assert len(hits) == 15
    assert "images/05.png" not in [hit.image for hit in hits]
    printed = printed_without_torch([str(index_folder), "--like", "images/05.png", "-k", "1"])
    assert hits[0].image in printed
    assert [hit.row for hit in index.search(like="05.png", k=15)] == [hit.row for hit in index.search(like=5, k=15)]
    with pytest.raises(DataError, match="no image with the location 99.png"):
        index.search(like="99.png")


def test_filters_and_columns(index: Index) -> None:
    hits = index.search("a square", where="year > 2020 and color in ('blue', 'yellow')")
    assert sorted(hit.columns["year"] for hit in hits) == [2021, 2022, 2023, 2024, 2025]
    assert index.search("a square", where="year > 2100") == []
    assert [hit.row for hit in index.search("x", where="captions contains 'GREEN stripe'")] == [6]
    many = index.search_many(["a square", "a circle"], where="color = 'red'", k=2)
    assert [[hit.row for hit in hits] for hits in many] == [
        [hit.row for hit in index.search(text, where="color = 'red'", k=2)] for text in ("a square", "a circle")
    ]
    assert index.search_many([]) == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"query": ""}, "empty"),
        ({}, "no part with a positive weight"),
        ({"minus": "a dog"}, "no part with a positive weight"),
        ({"query": "a dog", "minus": "a dog"}, "cancel"),
        ({"query": {"a dog": float("nan")}}, "nan"),
        ({"query": "a dog", "where": "yeer > 1"}, "yeer; did you mean year"),
        ({"query": "a dog", "where": "year > 'x'"}, "the column year of the type int64"),
        ({"query": "a dog", "where": "color = Red"}, "such as 'Red'"),
        ({"query": "a dog", "where": "year > 2020; import os"}, "character 12"),
        ({"query": "a dog", "where": "(" * 3000}, "nested"),
        ({"query": "a dog", "k": 0}, "0"),
        ({"query": "a dog", "precision": 1.5}, "1.5"),
        ({"like": 16}, "16"),
        ({"images": "gone.png"}, "gone.png"),
    ],
)
def test_queries_without_a_meaning_are_refused(index: Index, query: dict[str, object], named: str) -> None:
    with pytest.raises(UserError) as refused:
        index.search(**query)  # type: ignore[arg-type]
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [(0.0, "vectors[1]"), (1e-30, "vectors[1]"), (float("nan"), "vectors[1]"), (None, "(2, 3)")],
)
def test_vectors_without_a_direction_are_refused(index: Index, change: float | None, named: str) -> None:
    vectors = index.unit_features(slice(0, 2))
    if change is None:
        vectors = vectors[:, :3]
    else:
        vectors[1] *= change
    with pytest.raises(DataError) as refused:
        index.search_vectors(vectors)
    assert named in str(refused.value)


COLUMNS = pa.table(
    {
        "year": [2019, 2021, None, 2023],
        "city": ["Seoul", "Lima", None, "O'x"],
        "ok": [True, False, None, True],
        "tags": [["A dog"], [], ["x", "two Dogs"], None],
        "a b": [1.5, 2.5, 3.5, 4.5],
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("year > 2020", [1, 3]),
        ("not year > 2020", [0]),
        ("year = 2021 or ok and year < 2020", [0, 1]),
        ("(year = 2021 or ok) and year < 2020", [0]),
        ("city in ('Seoul', 'Lima')", [0, 1]),
        ("city not in ('Lima')", [0, 3]),
        ("not ok", [1]),
        ("tags contains 'dog'", [0, 2]),
        ("city like 'S%' or \"a b\" >= 4.5", [0, 3]),
        ("year is null", [2]),
        ("year IS NOT NULL AND city = 'O''x'", [3]),
        ("year <> 2.021e3 and year != -5", [0, 3]),
    ],
)
def test_filters_mean_what_they_mean_in_sql(where: str, rows: list[int]) -> None:
    assert np.flatnonzero(rows_where(COLUMNS, where)).tolist() == rows


def damaged(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to)


@pytest.mark.parametrize("kind", ["manifest", "rows", "features", "textfeatures", "missing", "name", "empty"])
def test_a_damaged_index_is_one_line(index_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(index_folder, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    if kind == "manifest":
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:200])
    elif kind == "name":
        manifest["files"]["rows"]["name"] = "../../etc/passwd"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif kind == "empty":
        (folder / "manifest.json").write_text("{}")
    else:
        file = folder / manifest["files"]["rows" if kind == "missing" else kind]["name"]
        data = bytearray(file.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        file.unlink() if kind == "missing" else file.write_bytes(data)
    with pytest.raises(DataError) as refused:
        Index(folder, check=True)
    assert str(folder) in str(refused.value)


def test_suggested_names_are_written_as_in_a_filter() -> None:
    with pytest.raises(DataError, match='no column photographer; did you mean "photographer name"'):
        rows_where(pa.table({"photographer name": ["Kim"], "year": [1]}), "photographer = 'Kim'")
