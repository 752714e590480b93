"""Two models over a suite: differences per dataset with Holm's correction."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.errors import DataError
from clipkit.evaluation import compare_suites, to_json
from clipkit.evaluation.classification import classification_columns
from clipkit.evaluation.compare_suites import holm
from clipkit.evaluation.figures import figures
from clipkit.evaluation.result import build_result

IMAGES = 400


def result(model: str, right: np.ndarray, sha256: str) -> dict[str, object]:
    """Return a result of two classes in which the given images are right."""
    label = np.arange(len(right)) % 2
    predicted = np.where(right, label, 1 - label)
    queries = {
        "label": label.tolist(), "predicted": predicted.tolist(), "confidence": [0.5] * len(right),
        "true_rank": (2 - right.astype(int)).tolist(), "images": [f"{k}.png" for k in range(len(right))],
    }  # fmt: skip
    columns = classification_columns(queries, 2)
    data = {"name": sha256, "images": len(right), "classes": 2, "sha256": sha256}
    return dict(build_result("zeroshot", model, data, figures(columns, {}), queries=queries))


def suite(folder: Path, rows: list[tuple[str, str, float]], seed: int, other: str = "") -> Path:
    """Write a suite with an accuracy for each (dataset, model, share)."""
    folder.mkdir()
    written = []
    for number, (dataset, model, share) in enumerate(rows):
        right = np.random.default_rng(seed + number).random(IMAGES) < share
        (folder / f"{number}.json").write_text(to_json(result(model, right, dataset + other)))
        written.append(
            {"dataset": dataset, "title": dataset, "metric": "acc1", "model": model, "file": f"{number}.json"}
        )
    content = {"suite": "mine", "title": "My suite", "rows": written}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_differences_are_corrected_and_summed_up(tmp_path: Path) -> None:
    first = suite(tmp_path / "a", [("one", "A", 0.5), ("two", "A", 0.5), ("three", "A", 0.5), ("four", "A", 0.5)], 0)
    second = suite(tmp_path / "b", [("one", "B", 0.8), ("two", "B", 0.5), ("three", "B", 0.3)], 100)
    compared = compare_suites(first, second)
    rows = {row["dataset"]: row for row in compared["datasets"]}
    assert list(compared["skipped"]) == ["four"]
    assert rows["one"]["p_holm"] < 0.05
    assert rows["three"]["p_holm"] < 0.05
    assert rows["two"]["p_holm"] > 0.05
    assert rows["two"]["difference"] == pytest.approx(rows["two"]["second"] - rows["two"]["first"])
    assert [row["p_holm"] for row in compared["datasets"]] == holm([row["p"] for row in compared["datasets"]])
    mean = compared["mean"]
    assert mean["difference"] == pytest.approx(np.mean([row["difference"] for row in compared["datasets"]]))
    assert mean["low"] < mean["difference"] < mean["high"]
    assert "3 datasets of My suite" in compared["sentence"]
    assert "on 1 and worse on 1" in compared["sentence"]


def test_p_is_that_of_a_paired_test(tmp_path: Path) -> None:
    first = suite(tmp_path / "a", [("one", "A", 0.5)], 3)
    second = suite(tmp_path / "b", [("one", "B", 0.57)], 4)
    (row,) = compare_suites(first, second)["datasets"]
    files = [json.loads((folder / "0.json").read_text())["queries"] for folder in (first, second)]
    right = [np.array(q["label"]) == np.array(q["predicted"]) for q in files]
    expected = scipy.stats.ttest_rel(right[1].astype(float), right[0].astype(float)).pvalue
    assert row["p"] == pytest.approx(expected, rel=0.3)


def test_holm_is_the_definition_step_by_step() -> None:
    p = np.random.default_rng(0).random(7) * 0.1
    for alpha in (0.01, 0.05, 0.2):
        rejected = []
        for rank, k in enumerate(np.argsort(p)):  # stop at the first p that is too large
            if p[k] > alpha / (len(p) - rank):
                break
            rejected.append(int(k))
        assert sorted(rejected) == [k for k, corrected in enumerate(holm(list(p))) if corrected <= alpha]


def test_the_command_compares_two_models_of_one_suite(tmp_path: Path) -> None:
    rows = [("one", "A", 0.5), ("one", "B", 0.8), ("one", "C", 0.8), ("two", "A", 0.5), ("two", "B", 0.5)]
    folder = suite(tmp_path / "all", rows, 0)
    with pytest.raises(DataError, match="A, B, C"):
        compare_suites(folder)
    out, page = tmp_path / "c.json", tmp_path / "c.html"
    arguments = [
        "eval",
        "compare",
        str(folder),
        "--model",
        "A",
        "--model",
        "B",
        "--json",
        str(out),
        "--report",
        str(page),
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    sentence = json.loads(out.read_text())["sentence"]
    assert sentence in done.output
    assert "p (Holm)" in page.read_text()


def test_other_data_is_not_compared(tmp_path: Path) -> None:
    first = suite(tmp_path / "a", [("one", "A", 0.5)], 3)
    second = suite(tmp_path / "b", [("one", "B", 0.5)], 4, other="!")
    with pytest.raises(DataError, match=r"one: .*different"):
        compare_suites(first, second)
    with pytest.raises(DataError, match="missing: .*choose from A"):
        compare_suites(first, first, ["A", "missing"])
