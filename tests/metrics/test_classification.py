import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    top_k_accuracy_score,
)

from clipkit import metrics


def test_accuracies_equal_scikit_learn() -> None:
    scores, labels = torch.rand(200, 12), torch.randint(0, 12, (200,))
    figures = metrics.classification(scores, labels)
    assert figures["acc1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert figures["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert figures["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(dim=1)))


def test_absent_classes_are_excluded_from_the_mean() -> None:
    scores = torch.eye(4)[torch.tensor([0, 0, 1, 0])]
    assert metrics.classification(scores, torch.tensor([0, 0, 1, 1]))["mean_per_class_recall"] == pytest.approx(0.75)


def test_acc5_is_undefined_below_five_classes() -> None:
    assert metrics.classification(torch.rand(3, 4), torch.tensor([0, 1, 2]))["acc5"] is None


def test_ties_go_to_the_lower_class() -> None:
    assert metrics.true_label_ranks(torch.zeros(3, 3), torch.tensor([0, 1, 2])).tolist() == [1, 2, 3]


def multilabel_data() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.rand(60, 5) < 0.3
    labels[:, 3] = False
    return torch.randn(60, 5), labels


def test_average_precision_equals_clip_benchmark() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification").average_precision_per_class
    scores, labels = multilabel_data()
    expected = theirs(scores, labels).double()
    torch.testing.assert_close(metrics.average_precision(scores, labels), expected, rtol=0, atol=1e-6)
    assert metrics.average_precision(scores, labels)[3] == 0  # a class without an image
    assert metrics.classification(scores, labels) == {"mean_average_precision": pytest.approx(expected.mean().item())}


def test_average_precision_equals_scikit_learn() -> None:
    scores, labels = multilabel_data()
    for c in (0, 1, 2, 4):
        expected = average_precision_score(labels[:, c], scores[:, c])
        assert metrics.average_precision(scores, labels)[c].item() == pytest.approx(expected)
    images, classes, precision = metrics.precision_at_right(scores, labels)
    for image, c, value in zip(images.tolist(), classes.tolist(), precision.tolist(), strict=True):
        above = scores[:, c] >= scores[image, c]
        assert value == pytest.approx((labels[:, c] & above).sum().item() / above.sum().item())
    assert len(images) == labels.sum()


def test_confusion_equals_scikit_learn() -> None:
    predicted, labels = torch.randint(0, 6, (100,)), torch.randint(0, 5, (100,))
    expected = confusion_matrix(labels, predicted, labels=range(6))
    assert metrics.confusion(predicted, labels, 6).tolist() == expected.tolist()


def test_calibration_error_equals_torchmetrics() -> None:
    theirs = pytest.importorskip("torchmetrics.functional.classification").multiclass_calibration_error
    probabilities, labels = (3 * torch.randn(500, 7)).softmax(dim=1), torch.randint(0, 7, (500,))
    confidence, predicted = probabilities.max(dim=1)
    ours = metrics.calibration_error(confidence, predicted == labels)
    assert ours == pytest.approx(theirs(probabilities, labels, num_classes=7, n_bins=15).item(), abs=1e-6)


def test_calibration_error_of_perfect_and_worst_confidence() -> None:
    assert metrics.calibration_error(torch.tensor([0.75] * 4), torch.tensor([True, True, True, False])) == 0
    assert metrics.calibration_error(torch.ones(3), torch.tensor([False] * 3)) == 1
