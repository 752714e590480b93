"""k-means clustering, and the agreement of clusters with classes."""

from math import lgamma

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays

_STEPS = 100  # maximum number of steps of Lloyd's algorithm, which usually converges much earlier


@takes_arrays
def kmeans(features: Float[Tensor, "N D"], clusters: int, *, seed: int = 0) -> Int[Tensor, " N"]:
    """Cluster rows by k-means, and return the cluster of each row.

    The first centers are drawn by k-means++ (Arthur and Vassilvitskii 2007), and improved by Lloyd's algorithm.

    Args:
        features: N rows to cluster.
        clusters: number of clusters, at most N. Some may be empty if rows are equal.
        seed: seed for drawing the first centers.

    Example:
        >>> kmeans(torch.tensor([[0.0], [0.1], [5.0]]), 2).unique(return_counts=True)[1].sort().values.tolist()
        [1, 2]
    """
    generator = np.random.default_rng(seed)
    norms = (features * features).sum(dim=1)
    first = int(generator.integers(len(features)))
    centers = features[[first]]
    distance = torch.full_like(norms, torch.inf)
    for _ in range(1, clusters):
        distance = torch.minimum(distance, _distances(features, norms, centers[-1:])[:, 0])
        weights = distance.double().cpu().numpy().clip(min=0)
        share = weights / weights.sum() if weights.sum() > 0 else None
        centers = torch.cat([centers, features[[int(generator.choice(len(features), p=share))]]])
    cluster = _distances(features, norms, centers).argmin(dim=1)
    for _ in range(_STEPS):
        sums = torch.zeros_like(centers).index_add_(0, cluster, features)
        counts = torch.bincount(cluster, minlength=clusters)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
        before, cluster = cluster, _distances(features, norms, centers).argmin(dim=1)
        if torch.equal(before, cluster):
            break
    return cluster


def _distances(features: Tensor, norms: Tensor, centers: Tensor) -> Float[Tensor, "N K"]:
    """Return the squared Euclidean distance of each row to each center; `norms` are the squared norms of the rows."""
    return (norms[:, None] - 2 * features @ centers.T + (centers * centers).sum(dim=1)).clamp(min=0)


@takes_arrays
def cluster_agreement(cluster: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """Return three measures of how well clusters agree with classes.

    Each measure is 1 if clusters and classes are the same partition. The adjusted measures are 0 on average for random
    clusters of the same sizes.

    Args:
        cluster, labels: cluster and class of each row.

    Returns:
        `nmi`: mutual information, divided by the mean of both entropies; equal to the V-measure (Rosenberg and
        Hirschberg 2007). `ami`: adjusted mutual information (Vinh et al. 2010). `ari`: adjusted Rand index (Hubert and
        Arabie 1985).

    Example:
        >>> cluster_agreement(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]))
        {'nmi': 1.0, 'ami': 1.0, 'ari': 1.0}
    """
    _, first = np.unique(cluster.cpu().numpy(), return_inverse=True)
    _, second = np.unique(labels.cpu().numpy(), return_inverse=True)
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    rows, columns, total = table.sum(axis=1), table.sum(axis=0), table.sum()
    # One cluster and one class for all rows, or one per row.
    if len(rows) == len(columns) == 1 or len(rows) == len(columns) == total:
        return {"nmi": 1.0, "ami": 1.0, "ari": 1.0}
    some = table > 0
    information = float((table[some] / total * np.log(table[some] * total / np.outer(rows, columns)[some])).sum())
    mean = (_entropy(rows / total) + _entropy(columns / total)) / 2
    by_chance = _expected_information(rows, columns)
    pairs, of_rows, of_columns, all_pairs = (
        float((n * (n - 1) / 2).sum()) for n in (table, rows, columns, np.array([total]))
    )
    expected = of_rows * of_columns / all_pairs
    return {
        "nmi": max(0.0, information) / mean,
        "ami": (information - by_chance) / (mean - by_chance),
        "ari": (pairs - expected) / ((of_rows + of_columns) / 2 - expected),
    }


def _entropy(share: NDArray[np.float64]) -> float:
    return float(-(share * np.log(share)).sum())


def _expected_information(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> float:
    """Return the expected mutual information of random partitions (Vinh et al. 2010, equation 24a).

    `rows` and `columns` are the sizes of the parts of both partitions.
    """
    total = int(rows.sum())
    log_factorial = np.array([lgamma(n + 1) for n in range(total + 1)])
    value = 0.0
    for a, many in zip(*np.unique(rows.astype(int), return_counts=True), strict=True):
        for b, of_size in zip(*np.unique(columns.astype(int), return_counts=True), strict=True):
            n = np.arange(max(1, a + b - total), min(a, b) + 1)
            if not len(n):
                continue
            f = log_factorial
            chance = np.exp(
                f[a] + f[b] + f[total - a] + f[total - b] - f[total] - f[n] - f[a - n] - f[b - n] - f[total - a - b + n]
            )
            value += float(many * of_size) * float((n / total * np.log(total * n / (a * b)) * chance).sum())
    return value
