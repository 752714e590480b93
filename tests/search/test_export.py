"""Each export is opened by its own library, and has the rows and features of the index."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipkit.errors import OutputError, UserError
from clipkit.export_formats import INDEX_FORMATS
from clipkit.search import Index
from clipkit.search.export import _WRITERS, _line


@pytest.fixture
def index(index_folder: Path) -> Index:
    return Index(index_folder)


def test_numpy(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    index.export("numpy", out)
    features = np.load(out / "features.npy", mmap_mode="r")
    assert features.dtype == np.float32
    assert np.array_equal(features, index.features)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == index.rows.to_pylist()
    assert np.array_equal(np.load(out / "text_features.npy"), index.text_features)
    texts = [json.loads(line)["text"] for line in (out / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert texts == index.texts
    about = json.loads((out / "index.json").read_text())
    assert about["model"]["name"] == index.manifest["model"]["name"]
    assert about["width"] == features.shape[1]


def test_parquet_by_pandas_and_datasets(index: Index, tmp_path: Path) -> None:
    import pandas

    out = tmp_path / "index.parquet"
    index.export("parquet", out)
    table = pandas.read_parquet(out)
    assert np.array_equal(np.stack(table["features"]), index.features)
    assert table["image"].tolist() == index.rows["image"].to_pylist()
    assert table["captions"][5].tolist() == index.rows["captions"][5].as_py()
    assert table["year"].isna().tolist() == [row == 3 for row in range(16)]


def test_json_has_no_infinite_numbers() -> None:
    row = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": [-math.inf, "nan"]}}
    assert json.loads(_line(row)) == {"a": None, "b": [1.5, None], "c": {"d": [None, "nan"]}}


def test_blocks_are_joined_and_a_column_of_the_user_is_kept(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr("clipkit.search.export._BLOCK", 5)
    index.rows = index.rows.append_column("features", pa.array([float("nan"), *range(15)]))
    index.export("parquet", tmp_path / "index.parquet")
    index.export("numpy", tmp_path / "numpy")
    table = parquet.read_table(tmp_path / "index.parquet")
    assert table["features"].to_pylist()[1:] == list(range(15))
    assert np.array_equal(np.array(table["features_"].to_pylist()), index.features)
    assert np.array_equal(np.load(tmp_path / "numpy" / "features.npy"), index.features)
    lines = (tmp_path / "numpy" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["features"] for line in lines] == [None, *range(15)]


def test_lancedb_finds_the_neighbors_that_the_index_finds(index: Index, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="needs pip install 'clipkit-torch[lancedb]'")
    out = tmp_path / "index.lancedb"
    index.export("lancedb", out)
    table = lancedb.connect(out).open_table("images")
    assert table.count_rows() == 16
    query = index.features[5].astype(np.float32)
    found = table.search(query).distance_type("cosine").where("year > 2011").limit(4).to_list()
    hits = index.search(like=5, where="year > 2011", k=3)
    assert [row["image"] for row in found] == [index.rows["image"][5].as_py(), *(hit.image for hit in hits)]
    assert [1 - row["_distance"] for row in found][1:] == pytest.approx([hit.score for hit in hits], abs=1e-3)


def test_a_column_that_lancedb_refuses_is_named(index: Index, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="needs pip install 'clipkit-torch[lancedb]'")
    index.rows = index.rows.append_column("meta.year", index.rows["year"])
    with pytest.raises(UserError, match=r"meta\.year"):
        index.export("lancedb", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_the_reason_also_for_lancedb(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_table(*given: Any, **options: Any) -> None:
        raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), /rust/lance/src/x.rs")

    connected = SimpleNamespace(create_table=create_table)
    monkeypatch.setitem(sys.modules, "lancedb", SimpleNamespace(connect=lambda folder: connected))  # type: ignore[misc]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(OutputError, match="No space left on device"):
        index.export("lancedb", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", INDEX_FORMATS)
def test_what_exists_is_not_replaced(to: str, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="mine"):
        index.export(to, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_format_or_library_that_is_missing_is_named(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"clipkit-torch\[lancedb\]"):
        index.export("lancedb", tmp_path / "out")
    with pytest.raises(UserError, match="csv: .*numpy, parquet, lancedb"):
        index.export("csv", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_format_has_a_writer() -> None:
    assert _WRITERS.keys() == INDEX_FORMATS.keys()
