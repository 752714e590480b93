"""Metrics of DataComp's suite: worst group, macro F1, means; and the layouts of its datasets."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import f1_score

import clipkit
from clipkit.data import read_labeled, read_near_misses
from clipkit.errors import DataError
from clipkit.evaluation.suites import read_suite, run_suite
from clipkit.evaluation.suites.entries import DataSet
from clipkit.evaluation.suites.sources import open_data
from clipkit.metrics import group_accuracies, macro_f1
from clipkit.report.suite import suite_tables
from tests.conftest import draw, write_csv


def test_macro_f1_is_that_of_wilds() -> None:
    predicted, labels = torch.randint(0, 9, (60,)), torch.randint(0, 5, (60,))
    expected = f1_score(labels, predicted, average="macro", labels=labels.unique(), zero_division=0)
    assert macro_f1(predicted, labels) == pytest.approx(expected, abs=1e-6)


def test_worst_group_is_the_lowest_accuracy_over_groups() -> None:
    rows = group_accuracies([1, 2, 6, 1, 9], ["a", "a", "b", "b", ""])
    assert rows == {"a": {"images": 2, "acc1": 0.5, "acc5": 1.0}, "b": {"images": 2, "acc1": 0.5, "acc5": 0.5}}


def shard(folder: Path) -> Path:
    """Write a dataset in the layout of DataComp's Hub datasets: classes in .cls, numbers of groups in .npy."""
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number in range(12):
            image, groups = io.BytesIO(), io.BytesIO()
            draw(("red", "green", "blue")[number % 3], "circle", shift=number).save(image, "PNG")
            np.save(groups, np.array([number // 4, 2000 + number]))
            for ending, content in (
                ("png", image.getvalue()), ("cls", str(number % 3).encode()), ("npy", groups.getvalue()),
            ):  # fmt: skip
                entry = tarfile.TarInfo(f"{number:03d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} thing\n")
    return folder


def test_groups_of_a_shard_are_measured(tiny_clip: Path, tmp_path: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    source = f"wds:{shard(tmp_path / 'data')}:test?group=npy"
    labeled = read_labeled(source)
    assert list(labeled.groups or ()) == [str(number // 4) for number in range(12)]
    result = clipkit.evaluate.zeroshot(model, labeled, cache=False)
    right = np.array(result["queries"]["true_rank"]) == 1
    of_group = [right[4 * group : 4 * group + 4].mean() for group in range(3)]
    assert result["metrics"]["acc1_worst_group"]["value"] == pytest.approx(min(of_group))
    assert [row["acc1"] for row in result["groups"]] == pytest.approx(of_group)
    label, predicted = (result["queries"][name] for name in ("label", "predicted"))
    expected = f1_score(label, predicted, average="macro", labels=[0, 1, 2], zero_division=0)
    assert result["metrics"]["macro_f1"]["value"] == pytest.approx(expected)
    entry = DataSet(name="x", task="zeroshot", source=f"{tmp_path / 'data'}/test/0.tar?group=npy", ignored_groups=["1"])
    assert list(open_data(entry).data.groups) == ["0"] * 4 + [""] * 4 + ["2"] * 4


def test_groups_of_a_table_and_missing_ones(shapes: Path, tmp_path: Path) -> None:
    rows = [[str(shapes / f"images/{k:02d}.png"), "a", ("Africa", "Asia")[k % 2]] for k in range(4)]
    table = write_csv(tmp_path / "t.csv", ["image", "label", "region"], rows)
    assert list(read_labeled(f"{table}?group=region").groups or ()) == ["Africa", "Asia"] * 2
    assert read_labeled(str(table)).groups is None
    gap = write_csv(tmp_path / "gap.csv", ["image", "label", "region"], [*rows[:1], [rows[1][0], "a", ""]])
    with pytest.raises(DataError, match="row 2 has no group"):
        read_labeled(f"{gap}?group=region")


def test_a_suite_has_the_mean_of_models_with_every_result(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    suite: dict[str, Any] = {
        "name": "mine", "title": "Mine", "mean": True,
        "datasets": [
            {"name": "colors", "task": "zeroshot", "source": str(shapes / "classes.csv"), "metric": "macro_f1"},
            {"name": "pairs", "task": "retrieval", "source": str(shapes / "captions.csv"), "metric": "mean_recall@1"},
        ],
    }  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(suite))
    result = run_suite(read_suite(str(file)), [str(tiny_clip)], tmp_path / "out", cache=False)
    values = [row["value"] for row in result.rows]
    assert result.mean == {str(tiny_clip): pytest.approx(sum(values) / 2)}
    assert suite_tables(result.to_dict())[0].rows[-1][0] == "mean of 2"
    both = clipkit.evaluate.retrieval(clipkit.load(str(tiny_clip)), shapes / "captions.csv", cache=False)["metrics"]
    parts = [both[f"{way}_retrieval_recall@1"] for way in ("image", "text")]
    for key in ("value", "chance"):
        assert both["mean_recall@1"][key] == pytest.approx(sum(part[key] for part in parts) / 2)
    suite["datasets"].append({"name": "gone", "task": "retrieval", "source": "gone.csv"})
    file.write_text(yaml.safe_dump(suite))
    result = run_suite(read_suite(str(file)), [str(tiny_clip)], tmp_path / "out", cache=False)
    assert result.mean == {str(tiny_clip): None}


def test_datacomp_has_38_datasets_and_xm3600_36() -> None:
    datacomp = read_suite("datacomp")
    assert len(datacomp.datasets) == 38
    assert datacomp.mean
    metrics = {entry.name: entry.main_metric for entry in datacomp.datasets}
    own = {name: metric for name, metric in metrics.items() if metric not in ("acc1", "mean_per_class_recall")}
    assert own == {
        "flickr30k": "mean_recall@1", "mscoco": "mean_recall@1", "winogavil": "jaccard_10-12", "iwildcam": "macro_f1",
        "fmow": "acc1_worst_group", "dollar_street": "acc5_worst_group", "geode": "acc1_worst_group",
    }  # fmt: skip
    assert len(read_suite("xm3600").datasets) == 36
    assert len(read_suite("xtd10").datasets) == 11


def test_two_correct_captions_are_those_of_sugarcrepe_pp(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    columns = ["image", "caption", "caption2", "negative_caption"]
    rows = [
        [str(shapes / f"images/{k:02d}.png"), f"a {color} thing", f"it is {color}", f"a {other} thing"]
        for k, (color, other) in enumerate([("red", "blue"), ("green", "red"), ("blue", "red"), ("red", "green")] * 3)
    ]
    table = write_csv(tmp_path / "swap.csv", columns, rows)
    assert read_near_misses(table).caption_positions.shape == (12, 3)
    model = clipkit.load(str(tiny_clip))
    result = clipkit.evaluate.compositional(model, str(table), cache=False)
    image_text, text_only = [], []
    for image, first, second, negative in rows:
        x = model.encode_image(image)[0]
        p1, p2, n = model.encode_text([first, second, negative])
        image_text.append(x @ p1 > x @ n and x @ p2 > x @ n)
        text_only.append(p1 @ p2 > p1 @ n and p1 @ p2 > p2 @ n)
    assert result["metrics"]["text_acc"]["value"] == pytest.approx(np.mean(image_text))
    assert result["metrics"]["text_only_acc"]["value"] == pytest.approx(np.mean(text_only))
    assert result["metrics"]["text_acc"]["chance"] == pytest.approx(1 / 3)
    assert result["classes"][0]["category"] == "swap"
