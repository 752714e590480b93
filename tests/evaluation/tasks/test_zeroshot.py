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
from clipkit.evaluation.tasks.zeroshot import classification_result
from tests.conftest import COLOURS, SHAPES, draw, write_csv

TEMPLATES = ["a photo of a {c}.", "a {c} square", "{} things"]


@pytest.fixture
def model(tiny_clip: Path) -> clipkit.DualEncoder:
    return clipkit.load(tiny_clip)


def test_the_classifier_is_the_normalised_mean_of_unit_prompts(model: clipkit.DualEncoder) -> None:
    classes = ["red", "green", "blue"]
    by_hand = []
    for name in classes:
        prompts = [f"a photo of a {name}.", f"a {name} square", f"{name} things"]
        mean = torch.stack([model.encode_text([prompt])[0] for prompt in prompts]).mean(dim=0)
        by_hand.append(mean / mean.norm())
    torch.testing.assert_close(zeroshot_classifier(model, classes, TEMPLATES), torch.stack(by_hand), rtol=0, atol=1e-6)


class ForClipBenchmark:
    """Raw text features, as CLIP_benchmark asks models for them."""

    def __init__(self, model: clipkit.DualEncoder) -> None:
        self.model = model

    def encode_text(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.text(tokens)


class Tokens(dict[str, torch.Tensor]):
    def to(self, device: str) -> "Tokens":
        return self


def test_equals_clip_benchmark(model: clipkit.DualEncoder, shapes: Path) -> None:
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


def test_classes_may_be_more_than_the_data_has(model: clipkit.DualEncoder, shapes: Path) -> None:
    classes = ["purple", "red", "green", "blue", "yellow", "black"]
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes)
    assert result["data"]["classes"] == 6
    assert result["metrics"]["acc5"]["value"] is not None


def test_what_is_wrong_is_one_line(model: clipkit.DualEncoder, shapes: Path) -> None:
    with pytest.raises(DataError, match="'blue', which is not among the 1 classes given"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=["red"])
    with pytest.raises(DataError, match="has no {c}"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=["a photo"])


def test_several_names_a_class_make_prompts_each(model: clipkit.DualEncoder, shapes: Path) -> None:
    classes = {"red": ["red", "crimson"], "green": "green", "blue": ["blue"], "yellow": "yellow"}
    prompts = [template.replace("{c}", name) for name in ("red", "crimson") for template in ("a {c} thing", "{c}")]
    mean = model.encode_text(prompts).mean(dim=0)
    weights = zeroshot_classifier(model, classes, ["a {c} thing", "{c}"])
    torch.testing.assert_close(weights[0], mean / mean.norm(), rtol=0, atol=1e-6)
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes, templates=["a {c} thing", "{c}"])
    assert result["settings"]["classes"]["red"] == ["red", "crimson"]
    assert [row["class"] for row in result["classes"]] == ["red", "green", "blue", "yellow"]


def test_class_specific_sentences(model: clipkit.DualEncoder, shapes: Path) -> None:
    own = {name: [f"something {name}", f"{name} paint"] for name in ("red", "green", "blue", "yellow")}
    weights = zeroshot_classifier(model, list(own), own)
    mean = model.encode_text(own["green"]).mean(dim=0)
    torch.testing.assert_close(weights[1], mean / mean.norm(), rtol=0, atol=1e-6)
    assert evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=own)["settings"]["templates"] == own
    del own["green"]
    with pytest.raises(DataError, match="class 'green' has no sentences"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=own)


@pytest.fixture
def several(shapes: Path, tmp_path: Path) -> str:
    """Images with a colour and a shape each."""
    rows = []
    for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        rows += [[str(shapes / f"images/{number:02d}.png"), own] for own in (colour, shape)]
    return str(write_csv(tmp_path / "several.csv", ["image", "label"], rows))


def test_several_labels_equal_clip_benchmark(model: clipkit.DualEncoder, several: str, tmp_path: Path) -> None:
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
        average_precision_score([1, 1, 1, 1] + [0] * 12, np.random.default_rng(n).random(16)) for n in range(3000)
    ]
    assert figure["chance"] == pytest.approx(np.mean(orders), abs=0.01)
    assert [row["images"] for row in result["classes"]] == [4] * 8
    table = parquet.read_table(file)
    again = theirs(torch.tensor(table["scores"].to_pylist()), torch.from_numpy(labelled.labels)).mean().item()
    assert again == pytest.approx(figure["value"], abs=1e-6)
    classes = json.loads(table.schema.metadata[b"classes"])
    assert [classes[c] for c in table["label"].to_pylist()[0]] == ["red", "square"]


def test_predictions_and_classes_give_every_figure_again(
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
    for place, (row, own) in enumerate(zip(result["classes"], counts, strict=True)):
        assert row["class"] == classes[place]
        assert row["images"] == own.sum()
        assert row["recall"] == (pytest.approx(own[place] / own.sum(), abs=1e-6) if own.sum() else None)
        wrong = {classes[other]: int(own[other]) for other in range(6) if own[other] and other != place}
        assert len(row["taken_for"]) == min(3, len(wrong))
        assert all(wrong[other] == count for other, count in row["taken_for"])


def test_a_perfect_model_has_perfect_average_precision_with_certainty() -> None:
    """Rare classes too: no resampled set lacks their images."""
    labels = torch.nn.functional.one_hot(torch.arange(200) // 4, 50).bool()
    scored = classification_result(labels.float(), labels, [str(c) for c in range(50)], ["x"] * 200, 1.0)
    figure = scored["metrics"]["mean_average_precision"]
    assert figure["value"] == figure["low"] == figure["high"] == 1


def test_a_class_is_named_once(model: clipkit.DualEncoder, shapes: Path) -> None:
    with pytest.raises(DataError, match="'red' is given 2 times"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=["red", "blue", "green", "yellow", "red"])


def test_classes_of_one_name_tie_and_the_first_wins(model: clipkit.DualEncoder, shapes: Path) -> None:
    """Equal prompts make equal scores, wherever the class stands."""
    classes = {"red": "red"} | {f"other {n}": "thing" for n in range(5)} | {"green": "red", "blue": "b", "yellow": "y"}
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes)
    assert 6 not in result["queries"]["predicted"]


def test_a_folder_may_bring_its_own_names_and_prompts(model: clipkit.DualEncoder, tmp_path: Path) -> None:
    for place, colour in (("n01", "red"), ("n02", "blue")):
        (tmp_path / place).mkdir()
        draw(colour, "square").save(tmp_path / place / "1.png")
    (tmp_path / "classnames.txt").write_text("red\nblue\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c} image\n")
    settings = evaluate.zeroshot(model, str(tmp_path))["settings"]
    assert settings["classes"] == {"n01": ["red"], "n02": ["blue"]}
    assert settings["templates"] == ["a {c} image"]
    assert evaluate.zeroshot(model, str(tmp_path), templates=["{c}"])["settings"]["templates"] == ["{c}"]
    (tmp_path / "classnames.txt").write_text("red\n")
    with pytest.raises(DataError, match="has 1 names for 2 class folders"):
        evaluate.zeroshot(model, str(tmp_path))


def test_the_second_task_computes_no_image_again(model: clipkit.DualEncoder, shapes: Path, tmp_path: Path) -> None:
    evaluate.retrieval(model, str(shapes / "captions.csv"), cache=tmp_path)
    result = evaluate.zeroshot(model, str(shapes / "classes.csv"), cache=tmp_path)
    assert result["settings"]["features"] == {"computed": 4, "from_cache": 16}  # the four prompts are new
