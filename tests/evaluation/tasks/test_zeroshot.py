import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import average_precision_score, confusion_matrix

import clipkit
from clipkit import evaluate, metrics
from clipkit.data import read_labeled
from clipkit.errors import DataError
from clipkit.evaluation import zeroshot_classifier
from clipkit.evaluation.classification import classification_result
from tests.conftest import COLOURS, SHAPES, draw, write_csv
from tests.models.families import build

TEMPLATES = ["a photo of a {c}.", "a {c} square", "{} things"]


@pytest.fixture
def model(tiny_clip: Path) -> clipkit.DualEncoder:
    return clipkit.load(tiny_clip)


def test_classifier_is_the_normalized_mean_of_unit_prompts(model: clipkit.DualEncoder) -> None:
    classes = ["red", "green", "blue"]
    by_hand = []
    for name in classes:
        prompts = [f"a photo of a {name}.", f"a {name} square", f"{name} things"]
        mean = torch.stack([model.encode_text([prompt])[0] for prompt in prompts]).mean(dim=0)
        by_hand.append(mean / mean.norm())
    torch.testing.assert_close(zeroshot_classifier(model, classes, TEMPLATES), torch.stack(by_hand), rtol=0, atol=1e-6)


class ForClipBenchmark:
    """Raw text features behind the interface that CLIP_benchmark expects."""

    def __init__(self, model: clipkit.DualEncoder) -> None:
        self.model = model

    def encode_text(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.text(tokens)


class Tokens(dict[str, torch.Tensor]):
    def to(self, device: str) -> "Tokens":
        return self


def test_accuracy_equals_clip_benchmark(model: clipkit.DualEncoder, shapes: Path) -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    labelled = read_labeled(str(shapes / "classes.csv"))
    templates = ["a photo of a {c}.", "a {c} square"]
    weights = theirs.zero_shot_classifier(
        ForClipBenchmark(model),
        lambda texts: Tokens(model.text.tokenize(texts)),
        labelled.classes,
        templates,
        "cpu",
        amp=False,
    )
    torch.testing.assert_close(zeroshot_classifier(model, labelled.classes, templates).T, weights, rtol=0, atol=1e-6)
    predicted = (100.0 * model.encode_image(labelled.images) @ weights).argmax(dim=1)
    labels = torch.from_numpy(labelled.labels)
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=templates)
    assert result["metrics"]["acc1"]["value"] == pytest.approx((predicted == labels).double().mean().item())
    assert result["metrics"]["acc5"]["value"] is None
    assert result["metrics"]["acc1"]["chance"] == 0.25


def test_classes_may_exceed_those_of_the_data(model: clipkit.DualEncoder, shapes: Path) -> None:
    classes = ["purple", "red", "green", "blue", "yellow", "black"]
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes)
    assert result["data"]["classes"] == 6
    assert result["metrics"]["acc5"]["value"] is not None


def test_wrong_classes_and_templates_are_refused(model: clipkit.DualEncoder, shapes: Path) -> None:
    with pytest.raises(DataError, match="'blue', which is not among the 1 given classes"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=["red"])
    with pytest.raises(DataError, match="'a photo'"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=["a photo"])


def test_each_name_of_a_class_makes_prompts(model: clipkit.DualEncoder, shapes: Path) -> None:
    classes = {"red": ["red", "crimson"], "green": "green", "blue": ["blue"], "yellow": "yellow"}
    prompts = [template.replace("{c}", name) for name in ("red", "crimson") for template in ("a {c} thing", "{c}")]
    mean = model.encode_text(prompts).mean(dim=0)
    weights = zeroshot_classifier(model, classes, ["a {c} thing", "{c}"])
    torch.testing.assert_close(weights[0], mean / mean.norm(), rtol=0, atol=1e-6)
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes, templates=["a {c} thing", "{c}"])
    assert result["settings"]["classes"]["red"] == ["red", "crimson"]
    assert [row["class"] for row in result["classes"]] == ["red", "green", "blue", "yellow"]


def test_classes_may_have_sentences_of_their_own(model: clipkit.DualEncoder, shapes: Path) -> None:
    sentences = {name: [f"something {name}", f"{name} paint"] for name in ("red", "green", "blue", "yellow")}
    weights = zeroshot_classifier(model, list(sentences), sentences)
    mean = model.encode_text(sentences["green"]).mean(dim=0)
    torch.testing.assert_close(weights[1], mean / mean.norm(), rtol=0, atol=1e-6)
    assert (
        evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=sentences)["settings"]["templates"] == sentences
    )
    del sentences["green"]
    with pytest.raises(DataError, match="'green'"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=sentences)


@pytest.fixture
def several(shapes: Path, tmp_path: Path) -> str:
    """Images that are labeled with a color and a shape."""
    rows = []
    for number, (color, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        rows += [[str(shapes / f"images/{number:02d}.png"), label] for label in (color, shape)]
    return str(write_csv(tmp_path / "several.csv", ["image", "label"], rows))


def test_average_precision_of_several_labels_equals_clip_benchmark(
    model: clipkit.DualEncoder, several: str, tmp_path: Path
) -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification").average_precision_per_class
    file = tmp_path / "p.parquet"
    result = evaluate.zeroshot(model, several, predictions=file)
    labelled = read_labeled(several)
    assert labelled.several
    scores = 100 * model.encode_image(labelled.images) @ zeroshot_classifier(model, labelled.classes).T
    expected = theirs(scores, torch.from_numpy(labelled.labels))
    figure = result["metrics"]["mean_average_precision"]
    assert list(result["metrics"]) == ["mean_average_precision"]
    assert figure["value"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert figure["low"] < figure["value"] < figure["high"]
    orders = [
        average_precision_score([1, 1, 1, 1] + [0] * 12, np.random.default_rng(n).random(16)) for n in range(1000)
    ]
    assert figure["chance"] == pytest.approx(np.mean(orders), abs=0.01)
    assert [row["images"] for row in result["classes"]] == [4] * 8
    table = parquet.read_table(file)
    again = theirs(torch.tensor(table["scores"].to_pylist()), torch.from_numpy(labelled.labels)).mean().item()
    assert again == pytest.approx(figure["value"], abs=1e-6)
    classes = json.loads(table.schema.metadata[b"classes"])
    assert [classes[c] for c in table["label"].to_pylist()[0]] == ["red", "square"]


def test_metrics_can_be_recomputed_from_predictions_and_class_rows(
    model: clipkit.DualEncoder, shapes: Path, tmp_path: Path
) -> None:
    classes = ["red", "green", "blue", "yellow", "purple", "black"]
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes, predictions=tmp_path / "p.parquet")
    table = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    scores, labels = torch.tensor(table["scores"]), torch.tensor(table["label"])
    for name, value in metrics.classification(scores, labels).items():
        assert result["metrics"][name]["value"] == pytest.approx(value)
    probabilities = (scores * model.logit_scale.exp()).softmax(dim=1)
    error = metrics.calibration_error(probabilities.amax(dim=1), probabilities.argmax(dim=1) == labels)
    assert result["metrics"]["ece"]["value"] == pytest.approx(error, abs=1e-6)
    counts = confusion_matrix(table["label"], table["predicted"], labels=range(6))
    for c, (row, predicted) in enumerate(zip(result["classes"], counts, strict=True)):
        assert row["class"] == classes[c]
        assert row["images"] == predicted.sum()
        assert row["recall"] == (pytest.approx(predicted[c] / predicted.sum(), abs=1e-6) if predicted.sum() else None)
        wrong = {classes[other]: int(predicted[other]) for other in range(6) if predicted[other] and other != c}
        assert len(row["taken_for"]) == min(3, len(wrong))
        assert all(wrong[other] == count for other, count in row["taken_for"])


def test_calibration_of_a_sigmoid_model_uses_the_probability_of_the_chosen_class(shapes: Path, tmp_path: Path) -> None:
    model = clipkit.load(build("siglip", tmp_path / "siglip"))
    with torch.no_grad():
        model.logit_scale.fill_(2.0), model.logit_bias.fill_(-1.5)
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), predictions=tmp_path / "p.parquet", cache=False)
    table = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    scores, labels = torch.tensor(table["scores"]), torch.tensor(table["label"])
    probabilities = (scores * model.logit_scale.exp() + model.logit_bias).sigmoid().detach()
    chosen = scores.argmax(dim=1)
    confidence = probabilities.gather(1, chosen[:, None])[:, 0]
    error = metrics.calibration_error(confidence, chosen == labels)
    assert result["metrics"]["ece"]["value"] == pytest.approx(error, abs=1e-6)
    assert result["queries"]["confidence"] == pytest.approx(confidence.tolist(), abs=1e-5)


def test_perfect_scores_have_average_precision_one_without_uncertainty() -> None:
    """Also with rare classes: no resampled set lacks their images."""
    labels = torch.nn.functional.one_hot(torch.arange(200) // 4, 50).bool()
    scored = classification_result(
        labels.float(), labels, [str(c) for c in range(50)], ["x"] * 200, lambda rows: rows.softmax(dim=1)
    )
    figure = scored["metrics"]["mean_average_precision"]
    assert figure["value"] == figure["low"] == figure["high"] == 1


def test_class_given_twice_is_refused(model: clipkit.DualEncoder, shapes: Path) -> None:
    with pytest.raises(DataError, match="'red' .* 2 times"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=["red", "blue", "green", "yellow", "red"])


def test_classes_with_equal_names_tie_and_the_first_wins(model: clipkit.DualEncoder, shapes: Path) -> None:
    """Equal prompts give equal scores at any position of the class."""
    classes = {"red": "red"} | {f"other {n}": "thing" for n in range(5)} | {"green": "red", "blue": "b", "yellow": "y"}
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes)
    assert 6 not in result["queries"]["predicted"]


def test_class_names_and_prompts_are_read_from_the_folder(model: clipkit.DualEncoder, tmp_path: Path) -> None:
    for label, color in (("n01", "red"), ("n02", "blue")):
        (tmp_path / label).mkdir()
        draw(color, "square").save(tmp_path / label / "1.png")
    (tmp_path / "classnames.txt").write_text("red\nblue\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c} image\n")
    settings = evaluate.zeroshot(model, str(tmp_path))["settings"]
    assert settings["classes"] == {"n01": ["red"], "n02": ["blue"]}
    assert settings["templates"] == ["a {c} image"]
    assert evaluate.zeroshot(model, str(tmp_path), templates=["{c}"])["settings"]["templates"] == ["{c}"]
    (tmp_path / "classnames.txt").write_text("red\n")
    with pytest.raises(DataError, match=r"classnames\.txt"):
        evaluate.zeroshot(model, str(tmp_path))


def test_second_task_takes_image_features_from_the_cache(
    model: clipkit.DualEncoder, shapes: Path, tmp_path: Path
) -> None:
    evaluate.retrieval(model, str(shapes / "captions.csv"), cache=tmp_path)
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), cache=tmp_path)
    assert result["settings"]["features"] == {"computed": 4, "from_cache": 16}  # the four prompts are new


def test_a_subset_chooses_among_all_classes_of_the_data(model: clipkit.DualEncoder, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    names = ["red", "green", "blue", "yellow", *(f"color {number}" for number in range(6))]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    images = [draw(color, shape) for color in ("green", "yellow") for shape in SHAPES]
    rows = {"image": [*images, images[0]], "label": [1] * 4 + [3] * 4 + [-1]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    result = evaluate.zeroshot(model, str(tmp_path / "saved"), cache=False)
    assert (result["data"]["images"], result["data"]["classes"]) == (8, 10)
    assert result["metrics"]["acc1"]["chance"] == 0.1
    assert list(result["settings"]["classes"]) == names
    unlabeled, unused = result["data"]["findings"]
    assert "1 of 9 rows" in unlabeled
    assert "8 of its 10 classes" in unused
    # Given classes need not name those without images.
    assert evaluate.zeroshot(model, str(tmp_path / "saved"), classes=["yellow", "green"])["data"]["classes"] == 2


def test_labels_that_are_numbers_are_positions_among_the_given_classes(
    model: clipkit.DualEncoder, shapes: Path, tmp_path: Path
) -> None:
    rows = [[str(shapes / f"images/{row:02d}.png"), str(row // 4 * 5)] for row in range(16)]  # 0, 5, 10, 15
    table = str(write_csv(tmp_path / "n.csv", ["image", "label"], rows))
    alone = evaluate.zeroshot(model, table, cache=False)
    assert any("coded_class_names" in line or "numbers" in line for line in alone["data"]["findings"])
    names = [f"name {number}" for number in range(16)]
    result = evaluate.zeroshot(model, table, classes=names, cache=False)
    assert result["data"]["classes"] == 16
    assert result["settings"]["classes"]["15"] == ["name 15"]
    assert "'0' is 'name 0'" in result["data"]["findings"][0]
    assert result["settings"]["classes"]["10"] == ["name 10"]
    with pytest.raises(DataError, match="'0', which is not among the 3 given classes"):
        evaluate.zeroshot(model, table, classes=names[:3])


def test_a_clean_dataset_has_no_findings(model: clipkit.DualEncoder, shapes: Path) -> None:
    assert "findings" not in evaluate.zeroshot(model, str(shapes / "classes.csv"), cache=False)["data"]
    assert "findings" not in evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)["data"]


def test_several_labels_among_more_given_classes(model: clipkit.DualEncoder, shapes: Path, tmp_path: Path) -> None:
    rows = [[str(shapes / f"images/{row:02d}.png"), label] for row in range(8) for label in ("a", "b")[: 1 + row % 2]]
    table = str(write_csv(tmp_path / "m.csv", ["image", "label"], rows))
    result = evaluate.zeroshot(model, table, classes=["z", "b", "y", "a"], cache=False)
    assert "mean average precision is measured instead of accuracy: 4 of 8" in result["data"]["findings"][0]
    assert [row["images"] for row in result["classes"]] == [0, 4, 0, 8]
