"""Clustering of image features, compared with scikit-learn on the same clusters."""

from pathlib import Path

import pytest
from pyarrow.parquet import read_table
from sklearn.metrics import v_measure_score

import clipkit
from clipkit.errors import DataError
from tests.conftest import write_csv


def test_a_dataset_is_clustered(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    model, data = clipkit.load(tiny_clip), shapes / "classes.csv"
    result = clipkit.evaluate.clustering(model, data, cache=False, predictions=tmp_path / "clusters.parquet")
    starts = result["settings"]["starts"]
    assert len(starts) == 5
    queries = result["queries"]
    assert starts[0]["nmi"] == pytest.approx(v_measure_score(queries["label"], queries["cluster"]))
    assert result.value("nmi") == pytest.approx(sum(start["nmi"] for start in starts) / 5)
    assert result["metrics"]["ami"]["chance"] == 0
    assert result["settings"]["clusters"] == result["data"]["classes"] == len(set(queries["label"]))
    assert read_table(tmp_path / "clusters.parquet").column("cluster").to_pylist() == queries["cluster"]
    with pytest.raises(DataError, match="no value per image"):
        clipkit.evaluate.compare(result, result)


def test_one_class_is_refused(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    one = write_csv(tmp_path / "one.csv", ["image", "label"], [[str(shapes / f"images/0{k}.png"), "a"] for k in (0, 1)])
    with pytest.raises(DataError, match=r"one\.csv: all images have the same label"):
        clipkit.evaluate.clustering(clipkit.load(tiny_clip), one, cache=False)
