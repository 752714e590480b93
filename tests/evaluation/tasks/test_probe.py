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
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv and test.csv: images by colour, ten and four of each."""
    folder = tmp_path_factory.mktemp("coloured")
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for colour in COLOURS:
        for number in range(14):
            name = f"{colour}{number}.png"
            draw(colour, SHAPES[number % 4], size=32 + number, shift=number - 7).save(folder / name)
            rows["train" if number < 10 else "test"].append([name, colour])
    for name, own in rows.items():
        write_csv(folder / f"{name}.csv", ["image", "label"], own)
    return folder


def test_it_learns_what_can_be_seen(model: clipkit.DualEncoder, coloured: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    train, test = str(coloured / "train.csv"), str(coloured / "test.csv")
    result = evaluate.probe(model, train, test=test, predictions=file)
    assert result["data"]["images"] == 16
    assert result["data"]["learned_images"] == 40
    figure = result["metrics"]["lp_acc1"]
    assert 0.75 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert figure["chance"] == 0.25
    assert result["metrics"]["lp_acc5"]["value"] is None
    assert result["metrics"]["knn_acc1"]["value"] > 0.5
    asked = clipkit.data.read_labeled(test)
    assert [own["label"] for own in result["map"]] == [asked.classes[label] for label in asked.labels]
    # The classifier is scikit-learn's at the weight decay that was chosen.
    labelled = clipkit.data.read_labeled(train)
    (weight_decay,) = result["settings"]["weight_decay"]
    theirs = LogisticRegression(C=1 / (weight_decay * 40), max_iter=10_000, tol=1e-8)
    theirs.fit(model.encode_image(labelled.images).double().numpy(), labelled.labels)
    expected = theirs.predict(model.encode_image(asked.images).double().numpy())
    assert parquet.read_table(file)["predicted"].to_pylist() == expected.tolist()
    assert figure["value"] == np.mean(expected == asked.labels)


def test_shots_are_drawn_again_for_each_seed(model: clipkit.DualEncoder, coloured: Path) -> None:
    train, test = str(coloured / "train.csv"), str(coloured / "test.csv")
    result = evaluate.probe(model, train, test=test, shots=2, seeds=4)
    assert result["data"]["learned_images"] == 8
    draws = result["settings"]["lp_acc1_of_draws"]
    assert len(draws) == len(result["settings"]["weight_decay"]) == 4
    assert len(set(draws)) > 1
    assert result["metrics"]["lp_acc1"]["value"] == pytest.approx(np.mean(draws))
    assert evaluate.probe(model, train, test=test, shots=2, seeds=4)["metrics"] == result["metrics"]
    with pytest.raises(DataError, match=r"has 10 images to learn from; 8 shots and 4 to choose .* need 12"):
        evaluate.probe(model, train, test=test, shots=8)


def test_without_test_data_a_fifth_is_held_out_whatever_the_order(model: clipkit.DualEncoder, coloured: Path) -> None:
    labelled = clipkit.data.read_labeled(str(coloured / "train.csv"))
    first = evaluate.probe(model, labelled)
    assert first["data"]["images"] == 8
    assert first["data"]["learned_images"] == 32
    order = torch.randperm(40).numpy()
    shuffled = LabeledImages(
        "shuffled", [labelled.images[row] for row in order], labelled.labels[order], labelled.classes
    )
    again = evaluate.probe(model, shuffled)
    assert sorted(first["queries"]["images"]) == sorted(again["queries"]["images"])


def test_equal_images_stay_on_one_side(model: clipkit.DualEncoder, coloured: Path) -> None:
    labelled = clipkit.data.read_labeled(str(coloured / "train.csv"))
    twice = LabeledImages("twice", labelled.images * 2, np.concatenate([labelled.labels] * 2), labelled.classes)
    asked = evaluate.probe(model, twice)["queries"]["images"]
    assert len(asked) == 16
    assert all(asked.count(name) == 2 for name in asked)
    # Also where somebody gave one two classes.
    mixed = LabeledImages(
        "mixed",
        [*labelled.images, *labelled.images[:6]],
        np.concatenate([labelled.labels, (labelled.labels[:6] + 1) % 4]),
        labelled.classes,
    )
    asked = evaluate.probe(model, mixed)["queries"]["images"]
    for image in labelled.images[:6]:
        assert asked.count(str(image)) in (0, 2)


def test_what_cannot_be_probed_is_one_line(model: clipkit.DualEncoder, coloured: Path, shapes: Path) -> None:
    several = LabeledImages("s", [coloured / "red0.png"], np.ones((1, 2), dtype=bool), ["a", "b"])
    with pytest.raises(DataError, match="several classes"):
        evaluate.probe(model, several)
    few = LabeledImages("f", [coloured / "red0.png", coloured / "blue0.png"], np.array([0, 1]), ["red", "blue"])
    with pytest.raises(DataError, match="class 'red' has too few different images"):
        evaluate.probe(model, few)
    with pytest.raises(DataError, match="of which there are none to learn from"):
        evaluate.probe(model, str(coloured / "train.csv"), test=LabeledImages("t", few.images, few.labels, ["x", "y"]))
