"""Results as objects: attributes, tables for terminals and notebooks, data frames and plots."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot

import clipkit
from clipkit import evaluate
from clipkit.errors import DataError
from clipkit.evaluation import to_json
from clipkit.evaluation.result import read_result

mpl.use("Agg")


@pytest.fixture(scope="module")
def results(tiny_clip: Path, shapes: Path) -> dict[str, clipkit.Result]:
    model = clipkit.load(tiny_clip, device="cpu")
    return {
        "retrieval": evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False),
        "zeroshot": evaluate.zeroshot(model, str(shapes / "classes.csv"), cache=False),
    }


def test_attributes_are_those_of_the_json(results: dict[str, clipkit.Result], tmp_path: Path) -> None:
    result = results["retrieval"]
    (tmp_path / "r.json").write_text(to_json(result))
    again = read_result(tmp_path / "r.json")
    assert again == result == json.loads(to_json(result))
    assert (again.task, again.model, again.data["images"]) == ("retrieval", result["model"], 16)
    assert (
        again.value("mean_recall") == again.metrics["mean_recall"]["value"] == result["metrics"]["mean_recall"]["value"]
    )
    with pytest.raises(DataError, match="acc1"):
        result.value("acc1")


def test_the_table_reads_in_a_terminal_and_in_a_notebook(results: dict[str, clipkit.Result]) -> None:
    result = clipkit.Result(results["zeroshot"] | {"model": "<b>me</b>"})
    lines = repr(result).splitlines()
    assert "16 images, 4 classes" in lines[0]
    assert len({len(line) for line in lines[1:]}) == 1  # aligned
    row = next(line for line in lines if line.startswith("top-1 accuracy"))
    assert f"{100 * (result.value('acc1') or 0):.1f} %" in row
    assert "&lt;b&gt;me&lt;/b&gt;" in result._repr_html_()
    assert result._repr_html_().count("<tr>") == len(lines) - 1


def test_frames_have_the_figures(results: dict[str, clipkit.Result]) -> None:
    metrics = results["retrieval"].to_frame()
    assert metrics.loc["mean_recall", "value"] == results["retrieval"].value("mean_recall")
    queries = results["retrieval"].to_frame("predictions")
    assert len(queries) == 16 + 32
    of_texts = queries[queries.asks == "text"]
    assert (of_texts["rank"] <= 1).mean() == results["retrieval"].value("image_retrieval_recall@1")
    images = results["zeroshot"].to_frame("predictions")
    assert (images.label == images.predicted).mean() == results["zeroshot"].value("acc1")
    assert set(results["zeroshot"].to_frame("classes")["class"]) == {"red", "green", "blue", "yellow"}
    with pytest.raises(DataError, match="'classes' is not part .* metrics, predictions"):
        results["retrieval"].to_frame("classes")


@pytest.mark.parametrize("kind", ["recall", "metrics"])
def test_plots_of_retrieval(kind: str, results: dict[str, clipkit.Result]) -> None:
    _, ax = pyplot.subplots()
    assert results["retrieval"].plot(kind, ax=ax) is ax
    if kind == "recall":
        line: Any = next(line for line in ax.lines if line.get_label() == "text → image")
        assert (line.get_xdata()[0], line.get_ydata()[-1]) == (1, 1.0)
        assert line.get_ydata()[0] == results["retrieval"].value("image_retrieval_recall@1")
    pyplot.close("all")


def test_plots_of_classes(results: dict[str, clipkit.Result]) -> None:
    result = results["zeroshot"]
    shares: Any = result.plot("confusion").images[0].get_array()
    recalls = [row["recall"] for row in result["classes"]]
    np.testing.assert_allclose(np.diag(shares), recalls)
    assert result.plot("calibration").get_xlabel() == "confidence"
    assert len(result.plot().get_yticks()) == 4
    with pytest.raises(DataError, match="'recall' is not a plot .* metrics, confusion, calibration"):
        result.plot("recall")
    pyplot.close("all")


def test_a_run_is_an_object(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.report.run.line_chart", lambda series, *labels: "")
    with pytest.raises(DataError, match="run: folder not found"):
        clipkit.Run(tmp_path / "run")
    result = clipkit.train(recipe())
    run = clipkit.Run(tmp_path / "run")
    assert run.is_finished
    assert list(run.metrics.step) == list(run.speed.step) == [1, 2, 3, 4]
    assert list(run.evaluations.step) == [2, 4]
    assert run.result == result
    assert run.report == tmp_path / "run" / "report.html"
    assert run.recipe == recipe()
    assert {finding.name for finding in run.findings} == {finding["name"] for finding in result["findings"]}
    assert "finished, 4 steps" in repr(run).splitlines()[0]
    assert "<table>" in run._repr_html_()
    assert run.model(device="cpu").encode_text("a").shape == (1, 24)
