"""Evaluation of Python objects: lists, columns, DataFrames, tables and datasets give the figures of the same files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import clipkit
from clipkit import evaluate
from clipkit.errors import DataError
from clipkit.models import DualEncoder

Rows = list[tuple[str, str]]

FORMS: dict[str, Callable[[Rows, str], Any]] = {
    "pairs": lambda rows, second: rows,
    "lists": lambda rows, second: [list(row) for row in rows],
    "Path objects": lambda rows, second: [(Path(image), text) for image, text in rows],
    "PIL images": lambda rows, second: [(Image.open(image), text) for image, text in rows],
    "arrays": lambda rows, second: [(np.asarray(Image.open(image)), text) for image, text in rows],
    "dicts": lambda rows, second: [{"image": image, second: text} for image, text in rows],
    "columns": lambda rows, second: {"path": [image for image, _ in rows], second: [text for _, text in rows]},
    "images and paths": lambda rows, second: {
        "image": [Image.open(image) if row % 2 else image for row, (image, _) in enumerate(rows)],
        second: np.array([text for _, text in rows]),
    },
    "DataFrame": lambda rows, second: pd.DataFrame(rows, columns=["filepath", second]),
    "DataFrame of a part": lambda rows, second: pd.DataFrame([("x", "y"), *rows], columns=["image", second])[1:],
    "table": lambda rows, second: pa.table({"image": [i for i, _ in rows], second: [text for _, text in rows]}),
    "dataset": lambda rows, second: datasets.Dataset.from_dict(
        {"image": [i for i, _ in rows], second: [text for _, text in rows]}
    ),
    "dataset of images": lambda rows, second: datasets.Dataset.from_dict(
        {"image": [i for i, _ in rows], second: [text for _, text in rows]},
        features=datasets.Features({"image": datasets.Image(), second: datasets.Value("string")}),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(tiny_clip, device="cpu")


def rows_of(file: Path) -> Rows:
    lines = [line.split(",", 1) for line in file.read_text().splitlines()[1:]]
    return [(str(file.parent / image), text) for image, text in lines]


@pytest.mark.parametrize("form", FORMS)
def test_objects_have_the_figures_of_files(form: str, model: DualEncoder, shapes: Path) -> None:
    file = shapes / "classes.csv"
    expected = evaluate.zeroshot(model, str(file), cache=False)
    result = evaluate.zeroshot(model, FORMS[form](rows_of(file), "label"), cache=False)
    assert result["data"]["images"] == 16
    for name, figure in expected["metrics"].items():
        assert result["metrics"][name]["value"] == pytest.approx(figure["value"], abs=1e-6)


@pytest.mark.parametrize("form", ["pairs", "DataFrame", "dataset"])
def test_objects_with_captions_and_several_per_image(form: str, model: DualEncoder, shapes: Path) -> None:
    file = shapes / "captions.csv"
    expected = evaluate.retrieval(model, str(file), cache=False)
    result = evaluate.retrieval(model, FORMS[form](rows_of(file), "caption"), cache=False)
    assert (result["data"]["images"], result["data"]["captions"]) == (16, 32)
    assert result["data"]["sha256"] == expected["data"]["sha256"]
    assert result["metrics"] == expected["metrics"]


def test_class_names_of_a_dataset_are_the_labels(model: DualEncoder, shapes: Path) -> None:
    rows = rows_of(shapes / "classes.csv")
    names = sorted({label for _, label in rows})
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict(
        {"image": [image for image, _ in rows], "label": [names.index(label) for _, label in rows]}, features=features
    )
    expected = evaluate.probe(model, str(shapes / "classes.csv"), cache=False)
    assert evaluate.probe(model, data, cache=False)["metrics"] == expected["metrics"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "an int is not data"),
        (None, "None is not data"),
        ([], "a list is not data"),
        (["a.png", "b.png"], "a list is not data"),
        ([("a.png", "b", "c")], "a list is not data"),
        ([("a.png", 5.5)], "column label"),
        ([(5, "a")], "row 1: an int is not an image"),
        ({"image": ["a.png"], "label": ["a", "b"]}, "is not a table of texts and images"),
        ({"image": ["gone.png"], "label": ["a"]}, "gone.png"),
        ({"image": [np.zeros((0, 0, 3), np.uint8)], "label": ["a"]}, "0 × 0"),
        ({"photos": ["number 7"], "label": ["a"]}, "no image column .* its columns are photos, label"),
        (pd.DataFrame({"image": ["a.png"], "words": ["a"]}), "no label column .* its columns are image, words"),
        (datasets.Dataset.from_dict({"image": ["a"]}), "no label column"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": ["a"]})}), "splits train"),
    ],
)  # fmt: skip
def test_other_objects_are_refused_in_one_line(data: Any, message: str, model: DualEncoder) -> None:
    for evaluation in (evaluate.zeroshot, evaluate.probe):
        with pytest.raises(DataError, match=message) as raised:
            evaluation(model, data, cache=False)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["dicts", "DataFrame", "dataset"])
def test_near_misses_of_objects_have_the_figures_of_files(
    form: str, model: DualEncoder, shapes: Path, tmp_path: Path
) -> None:
    captions = [(image, text) for image, text in rows_of(shapes / "captions.csv")][::2]
    values = [{"image": i, "caption": t, "negative_caption": f"not {t}", "category": t.split()[1]} for i, t in captions]
    (tmp_path / "misses.jsonl").write_text("\n".join(json.dumps(row) for row in values))
    expected = evaluate.compositional(model, tmp_path / "misses.jsonl", cache=False)
    opened = [{**row, "image": np.asarray(Image.open(row["image"]))} for row in values]
    made: dict[str, Callable[[], Any]] = {
        "dicts": lambda: opened,
        "DataFrame": lambda: pd.DataFrame(values),
        "dataset": lambda: datasets.Dataset.from_list(values).cast_column("image", datasets.Image()),
    }
    found = evaluate.compositional(model, made[form](), cache=False)
    assert found["metrics"] == expected["metrics"]
    assert [row["category"] for row in found["classes"]] == [row["category"] for row in expected["classes"]]


def test_other_objects_are_no_near_misses(model: DualEncoder) -> None:
    with pytest.raises(DataError, match="a list is not compositional data"):
        evaluate.compositional(model, [("a.png", "b")], cache=False)
    rows = [{"image": "a.png", "caption": "a", "negative_caption": text} for text in ("b", " ")]
    with pytest.raises(DataError, match="row 2 has no negative_caption"):
        evaluate.compositional(model, rows, cache=False)
