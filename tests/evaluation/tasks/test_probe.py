from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from sklearn.linear_model import LogisticRegression

import clipkit
from clipkit import evaluate
from clipkit.data import LabeledImages
from clipkit.errors import DataError
from tests.conftest import COLOURS, SHAPES, draw, write_csv


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> clipkit.DualEncoder:
    return clipkit.load(tiny_clip)


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv and test.csv: images labeled by color, ten and four per class."""
    folder = tmp_path_factory.mktemp("colored")
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for color in COLOURS:
        for number in range(14):
            name = f"{color}{number}.png"
            draw(color, SHAPES[number % 4], size=32 + number, shift=number - 7).save(folder / name)
            rows["train" if number < 10 else "test"].append([name, color])
    for name, labeled in rows.items():
        write_csv(folder / f"{name}.csv", ["image", "label"], labeled)
    return folder


def test_probe_learns_colors_and_equals_scikit_learn(model: clipkit.DualEncoder, colored: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    train, test = str(colored / "train.csv"), str(colored / "test.csv")
    result = evaluate.probe(model, train, test=test, predictions=file)
    assert result["data"]["images"] == 16
    assert result["data"]["learned_images"] == 40
    figure = result["metrics"]["lp_acc1"]
    assert 0.75 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert figure["chance"] == 0.25
    assert result["metrics"]["lp_acc5"]["value"] is None
    assert result["metrics"]["knn_acc1"]["value"] > 0.5
    measured = clipkit.data.read_labeled(test)
    assert [row["label"] for row in result["map"]] == [measured.classes[label] for label in measured.labels]
    # The classifier equals scikit-learn's at the chosen weight decay.
    labelled = clipkit.data.read_labeled(train)
    (weight_decay,) = result["settings"]["weight_decay"]
    theirs = LogisticRegression(C=1 / (weight_decay * 40), max_iter=10_000, tol=1e-8)
    theirs.fit(model.encode_image(labelled.images).double().numpy(), labelled.labels)
    expected = theirs.predict(model.encode_image(measured.images).double().numpy())
    assert parquet.read_table(file)["predicted"].to_pylist() == expected.tolist()
    assert figure["value"] == np.mean(expected == measured.labels)


def test_shots_are_drawn_once_per_seed(model: clipkit.DualEncoder, colored: Path) -> None:
    train, test = str(colored / "train.csv"), str(colored / "test.csv")
    result = evaluate.probe(model, train, test=test, shots=1, seeds=4)
    assert result["data"]["learned_images"] == 4
    draws = result["settings"]["lp_acc1_of_draws"]
    assert len(draws) == len(result["settings"]["weight_decay"]) == 4
    assert len(set(draws)) > 1
    assert result["metrics"]["lp_acc1"]["value"] == pytest.approx(np.mean(draws))
    assert evaluate.probe(model, train, test=test, shots=1, seeds=4)["metrics"] == result["metrics"]
    with pytest.raises(DataError, match=r"has 10 .*images.*8 shots and 4.*12.*--shots"):
        evaluate.probe(model, train, test=test, shots=8)


def test_without_test_data_a_fifth_is_held_out_in_any_order_of_images(
    model: clipkit.DualEncoder, colored: Path
) -> None:
    labelled = clipkit.data.read_labeled(str(colored / "train.csv"))
    first = evaluate.probe(model, labelled)
    assert first["data"]["images"] == 8
    assert first["data"]["learned_images"] == 32
    order = torch.randperm(40).numpy()
    shuffled = LabeledImages(
        "shuffled", [labelled.images[row] for row in order], labelled.labels[order], labelled.classes
    )
    again = evaluate.probe(model, shuffled)
    assert sorted(first["queries"]["images"]) == sorted(again["queries"]["images"])


def test_equal_files_are_never_separated(model: clipkit.DualEncoder, colored: Path) -> None:
    labelled = clipkit.data.read_labeled(str(colored / "train.csv"))
    twice = LabeledImages("twice", labelled.images * 2, np.concatenate([labelled.labels] * 2), labelled.classes)
    measured = evaluate.probe(model, twice)["queries"]["images"]
    assert len(measured) == 16
    assert all(measured.count(name) == 2 for name in measured)
    # Also if one file has two classes.
    mixed = LabeledImages(
        "mixed",
        [*labelled.images, *labelled.images[:6]],
        np.concatenate([labelled.labels, (labelled.labels[:6] + 1) % 4]),
        labelled.classes,
    )
    measured = evaluate.probe(model, mixed)["queries"]["images"]
    for image in labelled.images[:6]:
        assert measured.count(str(image)) in (0, 2)


def test_probe_of_a_mask_with_one_class_per_image_is_that_of_labels(model: clipkit.DualEncoder, colored: Path) -> None:
    labelled = clipkit.data.read_labeled(str(colored / "train.csv"))
    mask = LabeledImages(labelled.name, labelled.images, np.eye(4, dtype=bool)[labelled.labels], labelled.classes)
    expected, found = (evaluate.probe(model, data) for data in (labelled, mask))
    assert found["metrics"] == expected["metrics"]


def test_probe_refuses_unsuitable_data(model: clipkit.DualEncoder, colored: Path, shapes: Path) -> None:
    several = LabeledImages("s", [colored / "red0.png"], np.ones((1, 2), dtype=bool), ["a", "b"])
    with pytest.raises(DataError, match="1 of 1 images.*red0.png"):
        evaluate.probe(model, several)
    few = LabeledImages("f", [colored / "red0.png", colored / "blue0.png"], np.array([0, 1]), ["red", "blue"])
    with pytest.raises(DataError, match="'red' has too few different images"):
        evaluate.probe(model, few)
    with pytest.raises(DataError, match="'x'.*training images"):
        evaluate.probe(model, str(colored / "train.csv"), test=LabeledImages("t", few.images, few.labels, ["x", "y"]))


def test_classes_without_images_are_left_out(model: clipkit.DualEncoder, colored: Path) -> None:
    train = clipkit.data.read_labeled(str(colored / "train.csv"))
    test = clipkit.data.read_labeled(str(colored / "test.csv"))
    more = ["a", *train.classes[:2], "b", *train.classes[2:], "c"]
    shift = np.array([1, 2, 4, 5])
    wide = [LabeledImages(one.name, one.images, shift[one.labels], more) for one in (train, test)]
    expected = evaluate.probe(model, train, test=test)
    found = evaluate.probe(model, wide[0], test=wide[1])
    assert found["settings"]["classes"] == train.classes
    assert found["metrics"] == expected["metrics"]
