import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from clipkit import metrics


def test_equals_scikit_learn() -> None:
    scores, labels = torch.rand(200, 12), torch.randint(0, 12, (200,))
    figures = metrics.classification(scores, labels)
    assert figures["acc1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert figures["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert figures["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(dim=1)))


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    scores = torch.eye(4)[torch.tensor([0, 0, 1, 0])]
    assert metrics.classification(scores, torch.tensor([0, 0, 1, 1]))["mean_per_class_recall"] == pytest.approx(0.75)


def test_acc5_is_undefined_below_five_classes() -> None:
    assert metrics.classification(torch.rand(3, 4), torch.tensor([0, 1, 2]))["acc5"] is None


def test_ties_go_to_the_lower_class() -> None:
    assert metrics.true_label_ranks(torch.zeros(3, 3), torch.tensor([0, 1, 2])).tolist() == [1, 2, 3]
