from pathlib import Path

import pytest
import torch

import clipkit
from clipkit import evaluate
from clipkit.data import read_labelled
from clipkit.errors import DataError
from clipkit.evaluation import zeroshot_classifier

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
    labelled = read_labelled(str(shapes / "classes.csv"))
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
    predicted = (100.0 * model.encode_image(labelled.pictures) @ weights).argmax(dim=1)
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
    with pytest.raises(DataError, match="no place for the class name"):
        evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=["a photo"])
