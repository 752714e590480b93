"""Retrieval between images and texts, any number of texts an image and images a text."""

from collections.abc import Sequence
from math import comb

from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.ranks import RetrievalRanks, retrieval_ranks, right_pairs


def retrieval(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k both ways and their mean, median and mean rank, mean average precision at R.

    `image_retrieval_recall@k`: share of texts of which *any* image is among the k highest-scored images.
    `text_retrieval_recall@k`: share of images of which *any* text is among the k highest-scored texts.
    `mean_recall`: mean of them all. (Names and definitions of CLIP_benchmark 1.6; ties go to the lower index.)
    `…_median_rank`, `…_mean_rank`: of the best right answer, from 1; the median of an even number is rounded down.
    `…_map@r`: Musgrave et al. 2020.

    Args:
        image_features: unit length.
        text_features: unit length.
        image_of_text: for each text the row of its image; or (image, text) pairs.
        ks: cut-offs.

    Raises:
        ValueError: a feature is not finite: nothing is greater than NaN, so it would count as found first; or
            `image_of_text` does not fit the features.

    Example:
        >>> x = torch.eye(3)
        >>> retrieval(x, x[[0, 0, 2, 2]], torch.tensor([0, 0, 2, 1]), ks=(1,))["image_retrieval_recall@1"]
        0.75
    """
    if not (image_features.isfinite().all() and text_features.isfinite().all()):
        raise ValueError("the features are not finite, so nothing can be ranked by them")
    ranks = retrieval_ranks(image_features, text_features, image_of_text)
    return recalls(ranks, ks) | _rank_figures(ranks)


def recalls(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recalls both ways and their mean. Who has no right answer is no query."""
    figures: dict[str, float] = {}
    for name, of_queries in (("image_retrieval", ranks.of_texts), ("text_retrieval", ranks.of_images)):
        queries = of_queries[of_queries > 0]
        figures |= {f"{name}_recall@{k}": (queries <= k).double().mean().item() for k in ks}
    return figures | {"mean_recall": sum(figures.values()) / len(figures)}


def _rank_figures(ranks: RetrievalRanks) -> dict[str, float]:
    figures = {}
    for name, of_queries, precision in (
        ("image_retrieval", ranks.of_texts, ranks.precision_of_texts),
        ("text_retrieval", ranks.of_images, ranks.precision_of_images),
    ):
        asked = of_queries > 0
        figures[f"{name}_median_rank"] = median_rank(of_queries[asked])
        figures[f"{name}_mean_rank"] = of_queries[asked].double().mean().item()
        figures[f"{name}_map@r"] = precision[asked].mean().item()
    return figures


def median_rank(ranks: Int[Tensor, " Q"]) -> float:
    """The middle rank; of an even number the mean of the two, rounded down (as open_clip reports it)."""
    ordered = ranks.sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2)


def retrieval_chance(
    images: int,
    texts: int,
    image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float | None]:
    """What random scores would give, in expectation.

    With c right answers among n candidates: recall 1 − C(n−c, k)/C(n, k); best rank (n+1)/(c+1); average precision at
    R = c as in `precision_by_chance`. The median rank has none.
    """
    pairs = right_pairs(image_of_text)
    figures: dict[str, float | None] = {}
    others: dict[str, float | None] = {}
    for name, asking, askers, candidates in (
        ("image_retrieval", pairs[:, 1], texts, images),
        ("text_retrieval", pairs[:, 0], images, texts),
    ):
        sizes, queries = asking.bincount(minlength=askers).unique(return_counts=True)
        share = {int(c): int(q) for c, q in zip(sizes, queries, strict=True) if c > 0}
        total = sum(share.values())
        for k in ks:
            missed = sum(q * _missed(candidates, c, k) for c, q in share.items())
            figures[f"{name}_recall@{k}"] = 1 - missed / total
        others[f"{name}_median_rank"] = None
        others[f"{name}_mean_rank"] = sum(q * (candidates + 1) / (c + 1) for c, q in share.items()) / total
        others[f"{name}_map@r"] = sum(q * precision_by_chance(candidates, c, c) for c, q in share.items()) / total
    known = [value for value in figures.values() if value is not None]
    return figures | {"mean_recall": sum(known) / len(known)} | others


def _missed(candidates: int, right: int, k: int) -> float:
    return comb(candidates - right, k) / comb(candidates, k) if k <= candidates else 0.0


def precision_by_chance(candidates: int, right: int, among: int) -> float:
    """Mean precision at the right answers within the first `among` of a random order, the others counting 0.

    E of 1/R Σ_{k ≤ among} [k-th is right] · (right ones among the first k) / k. With `among` = R it is chance for
    average precision at R, with all candidates that for average precision.
    """
    if candidates == 1:
        return 1.0
    others = (right - 1) / (candidates - 1)
    return sum((1 + (k - 1) * others) / k for k in range(1, among + 1)) / candidates
