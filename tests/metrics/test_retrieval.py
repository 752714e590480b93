from itertools import combinations

import numpy as np
import pytest
import torch

from clipkit import metrics
from clipkit.metrics import batch_accuracy


def test_recalls_equal_clip_benchmark() -> None:
    zeroshot_retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    image = torch.nn.functional.normalize(torch.randn(20, 8), dim=-1)
    counts = torch.randint(1, 6, (20,))
    image_of_text = torch.arange(20).repeat_interleave(counts)
    text = torch.nn.functional.normalize(torch.randn(len(image_of_text), 8), dim=-1)
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(text)), image_of_text] = True
    ours = metrics.retrieval(image, text, image_of_text)
    for k in (1, 5, 10):
        theirs = zeroshot_retrieval.recall_at_k(scores, positive, k)
        assert ours[f"image_retrieval_recall@{k}"] == pytest.approx((theirs > 0).float().mean().item(), abs=1e-6)
        theirs = zeroshot_retrieval.recall_at_k(scores.T, positive.T, k)
        assert ours[f"text_retrieval_recall@{k}"] == pytest.approx((theirs > 0).float().mean().item(), abs=1e-6)


def test_ranks_of_pairs_equal_open_clip() -> None:
    theirs = pytest.importorskip("open_clip_train.train").get_clip_metrics
    image = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1)
    text = torch.nn.functional.normalize(image + torch.randn(50, 8), dim=-1)
    ours, expected = metrics.retrieval(image, text, torch.arange(50)), theirs(image, text, 1.0)
    for ours_name, theirs_name in (("image_retrieval", "text_to_image"), ("text_retrieval", "image_to_text")):
        assert ours[f"{ours_name}_mean_rank"] == pytest.approx(expected[f"{theirs_name}_mean_rank"])
        assert ours[f"{ours_name}_median_rank"] == expected[f"{theirs_name}_median_rank"]
        for k in (1, 5, 10):
            assert ours[f"{ours_name}_recall@{k}"] == pytest.approx(expected[f"{theirs_name}_R@{k}"])


def test_average_precision_at_r_equals_a_naive_loop() -> None:
    image, text = torch.randn(6, 4), torch.randn(14, 4)
    pairs = torch.tensor([(i, t) for i in range(6) for t in range(14) if (i * t) % 4 == 1 or t == i])
    ours = metrics.retrieval(image, text, pairs)
    for name, queries, candidates, query_column, answer_column in (
        ("image_retrieval", text, image, 1, 0),
        ("text_retrieval", image, text, 0, 1),
    ):
        found = []
        for q in range(len(queries)):
            right = set(pairs[pairs[:, query_column] == q, answer_column].tolist())
            if not right:
                continue
            best = (queries[q] @ candidates.T).argsort(descending=True).tolist()[: len(right)]
            hits = [rank for rank, candidate in enumerate(best) if candidate in right]
            found.append(sum((n + 1) / (rank + 1) for n, rank in enumerate(hits)) / len(right))
        assert ours[f"{name}_map@r"] == pytest.approx(np.mean(found))


def test_average_precision_at_r_equals_pytorch_metric_learning() -> None:
    module = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    labels = torch.randint(0, 5, (40,))
    references = torch.randint(0, 5, (60,))
    query = torch.nn.functional.normalize(torch.randn(40, 6), dim=-1)
    reference = torch.nn.functional.normalize(torch.randn(60, 6), dim=-1)
    theirs = module.AccuracyCalculator(
        include=("mean_average_precision_at_r",),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    expected = theirs.get_accuracy(query, labels, reference, references)["mean_average_precision_at_r"]
    pairs = (labels[:, None] == references[None, :]).nonzero()
    assert metrics.retrieval(query, reference, pairs)["text_retrieval_map@r"] == pytest.approx(expected, abs=1e-6)


def test_chance_equals_the_mean_of_random_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    image_of_text = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5])
    chance = metrics.retrieval_chance(6, 10, image_of_text, ks=(1, 3))
    found = dict.fromkeys(chance, 0.0)
    repetitions = 500
    for _ in range(repetitions):
        image, text = torch.randn(6, 20, generator=generator), torch.randn(10, 20, generator=generator)
        for name, value in metrics.retrieval(image, text, image_of_text, ks=(1, 3)).items():
            found[name] += value / repetitions
    for name, value in chance.items():
        if "median" in name:
            assert value is None
        else:
            assert found[name] == pytest.approx(value, abs=0.15 if "mean_rank" in name else 0.035), name


def test_mean_recall_is_the_mean_of_all_six() -> None:
    figures = metrics.retrieval(torch.randn(30, 4), torch.randn(30, 4), torch.arange(30))
    six = [value for name, value in figures.items() if "_recall@" in name]
    assert len(six) == 6
    assert figures["mean_recall"] == pytest.approx(sum(six) / 6)


def test_median_of_an_even_number_of_ranks_is_rounded_down() -> None:
    assert metrics.median_rank(torch.tensor([4, 1, 2, 9])) == 3
    assert metrics.median_rank(torch.tensor([2, 1])) == 1
    assert metrics.median_rank(torch.tensor([7, 1, 3])) == 3


def test_nan_is_refused() -> None:
    features = torch.full((3, 4), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        metrics.retrieval(features, torch.randn(3, 4), torch.arange(3))
    with pytest.raises(ValueError, match="NaN"):
        metrics.classification(torch.full((3, 6), float("nan")), torch.arange(3))


@pytest.mark.parametrize(
    ("image_of_text", "message"),
    [
        (torch.tensor([0, 1]), "has 2 entries for 4 texts"),
        (torch.tensor([0, 1, 2, 3]), "image 3, but there are 3"),
        (torch.tensor([0, 1, 2, -1]), "image -1"),
        (torch.tensor([[0, 0], [1, 4]]), "text 4, but there are 4"),
        (torch.zeros(0, 2, dtype=torch.long), "is empty"),
    ],
)
def test_invalid_image_of_text_is_refused(image_of_text: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.retrieval(torch.eye(3), torch.eye(3)[[0, 0, 1, 2]], image_of_text)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.eye(3), torch.tensor([0, 1]), r"\(2,\) .* \(3, 3\)"),
        (torch.eye(3), torch.tensor([0, 1, 3]), "from 0 to 3, but there are 3 classes"),
        (torch.eye(3), torch.tensor([0, -1, 2]), "from -1 to 2"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), r"\(0,\) .* \(0, 3\)"),
        (torch.eye(3), torch.eye(3, 2).bool(), r"\(3, 2\)"),
    ],
)
def test_invalid_labels_are_refused(scores: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.classification(scores, labels)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_batch_accuracy_equals_the_mean_over_all_batches(size: int) -> None:
    scores = torch.rand(7, 5, generator=torch.Generator().manual_seed(size)).T  # 5 texts, 7 images; text i has image i
    ranks = torch.tensor([1 + int((row > row[text]).sum()) for text, row in enumerate(scores)])
    first = [
        all(scores[text, text] >= scores[text, other] for other in others)
        for text in range(5)
        for others in combinations([image for image in range(7) if image != text], min(size, 7) - 1)
    ]
    assert batch_accuracy(ranks, 7, size) == pytest.approx(sum(first) / len(first))
    assert batch_accuracy(torch.cat([ranks, torch.zeros(3, dtype=torch.int64)]), 7, size) == pytest.approx(
        sum(first) / len(first)
    )
