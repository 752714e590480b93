"""Metrics of image-text retrieval. An image can have several texts, and a text several images."""

from collections.abc import Sequence
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays
from clipkit.metrics.ranks import RetrievalRanks, retrieval_ranks, right_pairs


@takes_arrays
def retrieval(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Return recall at k, median rank, mean rank and MAP@R of image retrieval and text retrieval.

    In image retrieval, a query is a text and its correct answers are its images. In text retrieval, a query is an image
    and its correct answers are its texts. Names and definitions follow CLIP_benchmark 1.6. Ties go to the lower index.

    Args:
        image_features, text_features: unit length; tensors or NumPy arrays, as for all metrics.
        image_of_text: index of each text's image; or (image, text) pairs.
        ks: values of k for the recalls.

    Returns:
        For each k, `image_retrieval_recall@k` and `text_retrieval_recall@k`: share of queries with *any* correct answer
        among the k highest scores. `mean_recall`: mean of all recalls. `…_median_rank` and `…_mean_rank`: median
        (rounded down) and mean of the rank of the best correct answer, from 1. `…_map@r`: mean average precision at R,
        the number of correct answers of a query (Musgrave et al. 2020).

    Raises:
        ValueError: a feature is not finite, or `image_of_text` does not fit the features.

    Example:
        >>> x = torch.eye(3)
        >>> retrieval(x, x[[0, 0, 2, 2]], torch.tensor([0, 0, 2, 1]), ks=(1,))["image_retrieval_recall@1"]
        0.75
    """
    if image_features.ndim != 2 or image_features.shape[1:] != text_features.shape[1:]:
        shapes = f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        raise ValueError(
            f"image and text features have the shapes {shapes}; give one row per image or text, with equal widths"
        )
    if not (image_features.isfinite().all() and text_features.isfinite().all()):
        raise ValueError(
            "features of images or texts are not finite, so their scores cannot be ranked; give finite features"
        )
    ranks = retrieval_ranks(image_features, text_features, image_of_text)
    return recalls(ranks, ks) | _rank_metrics(ranks)


def recalls(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return recall at each k of image retrieval and text retrieval, and the mean of all recalls.

    Queries without a correct answer are left out.
    """
    figures: dict[str, float] = {}
    for name, of_queries in (("image_retrieval", ranks.of_texts), ("text_retrieval", ranks.of_images)):
        queries = of_queries[of_queries > 0]
        figures |= {f"{name}_recall@{k}": (queries <= k).double().mean().item() for k in ks}
    return figures | {"mean_recall": sum(figures.values()) / len(figures)}


def _rank_metrics(ranks: RetrievalRanks) -> dict[str, float]:
    figures = {}
    for name, of_queries, precision in (
        ("image_retrieval", ranks.of_texts, ranks.precision_of_texts),
        ("text_retrieval", ranks.of_images, ranks.precision_of_images),
    ):
        answerable = of_queries > 0
        figures[f"{name}_median_rank"] = median_rank(of_queries[answerable])
        figures[f"{name}_mean_rank"] = of_queries[answerable].double().mean().item()
        figures[f"{name}_map@r"] = precision[answerable].mean().item()
    return figures


@takes_arrays
def median_rank(ranks: Int[Tensor, " Q"]) -> float:
    """Return the median of ranks, as defined by open_clip.

    For an even number of ranks, it is the mean of the two middle ranks, rounded down.
    """
    ordered = ranks.sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2)


@takes_arrays
def batch_accuracy(ranks: Int[Tensor, " Q"], candidates: int, size: int) -> float:
    """Return the expected top-1 accuracy of retrieval in a batch of random candidates.

    A batch of G candidates consists of the correct answer and G − 1 of the other n − 1 candidates. If the correct
    answer has rank r among all n candidates, it is the first of a batch with probability C(n−r, G−1) / C(n−1, G−1).

    Args:
        ranks: rank of each query's correct answer, from 1. Queries with rank 0, which have no correct answer, are left
            out.
        candidates: total number of candidates, n.
        size: number of candidates in a batch, G; at most n.

    Example:
        >>> batch_accuracy(torch.tensor([1, 2]), candidates=3, size=2)
        0.75
    """
    others = min(size, candidates) - 1
    behind = candidates - ranks[ranks > 0].double()  # number of candidates that rank lower
    logarithm = (behind + 1).lgamma() - (behind - others + 1).clamp(min=1).lgamma()
    most = torch.tensor(float(candidates - 1), dtype=torch.float64)
    every = (most + 1).lgamma() - (most - others + 1).lgamma()
    return torch.where(behind >= others, (logarithm - every).exp(), 0.0).mean().item()


@takes_arrays
def retrieval_chance(
    images: int,
    texts: int,
    image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float | None]:
    """Return the chance level of the metrics of `retrieval`, i.e. their expected values for random scores.

    For c correct answers among n candidates, recall at k is 1 − C(n−c, k)/C(n, k), and the best rank is (n+1)/(c+1).
    Average precision at R = c is computed by `precision_by_chance`. Median ranks are None.

    Args:
        images, texts: numbers of images and texts.
        image_of_text, ks: as for `retrieval`.
    """
    pairs = right_pairs(image_of_text)
    figures: dict[str, float | None] = {}
    others: dict[str, float | None] = {}
    for name, queries, query_count, candidates in (
        ("image_retrieval", pairs[:, 1], texts, images),
        ("text_retrieval", pairs[:, 0], images, texts),
    ):
        # Number of correct answers c -> number of queries with c correct answers.
        sizes, counts = queries.bincount(minlength=query_count).unique(return_counts=True)
        queries_with = {int(c): int(q) for c, q in zip(sizes, counts, strict=True) if c > 0}
        total = sum(queries_with.values())
        for k in ks:
            missed = sum(q * _miss_probability(candidates, c, k) for c, q in queries_with.items())
            figures[f"{name}_recall@{k}"] = 1 - missed / total
        others[f"{name}_median_rank"] = None
        others[f"{name}_mean_rank"] = sum(q * (candidates + 1) / (c + 1) for c, q in queries_with.items()) / total
        others[f"{name}_map@r"] = (
            sum(q * precision_by_chance(candidates, c, c) for c, q in queries_with.items()) / total
        )
    known = [value for value in figures.values() if value is not None]
    return figures | {"mean_recall": sum(known) / len(known)} | others


def _miss_probability(candidates: int, correct: int, k: int) -> float:
    return comb(candidates - correct, k) / comb(candidates, k) if k <= candidates else 0.0


def precision_by_chance(candidates: int, correct: int, among: int) -> float:
    """Return the expected value of average precision for candidates in random order.

    The average precision is 1/R Σ_k [candidate k is correct] · (number of correct candidates among the first k) / k.

    Args:
        candidates: number of candidates.
        correct: number of correct candidates, R.
        among: largest k of the sum: R for average precision at R, or `candidates` for average precision.
    """
    if candidates == 1:
        return 1.0
    others = (correct - 1) / (candidates - 1)
    return sum((1 + (k - 1) * others) / k for k in range(1, among + 1)) / candidates
