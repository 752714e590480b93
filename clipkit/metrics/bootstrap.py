"""Intervals by resampling clusters of queries."""

import numpy as np
from numpy.typing import NDArray

from clipkit.seeds import mix

DRAWS = 1000
_HELD = 1 << 22  # resampling counts held at once


def cluster_bootstrap(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    strata: NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Means of `values` over resampled clusters (Efron and Tibshirani 1993, chapter 8).

    Args:
        values: (Q,) one figure a query, as 1.0 for a hit.
        clusters: (Q,) the cluster of each query, as its image: clusters are drawn whole, with replacement.
        strata: (Q,) where given, clusters are drawn within each stratum and the result is the mean over strata of
            each stratum's mean. A cluster lies in one stratum.
        draws: number of repetitions.
        seed: the same seed and number of clusters give the same draws, so differences of two figures can be paired.

    Returns:
        (draws,) one mean a repetition.

    Example:
        >>> hits, images = np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1])
        >>> cluster_bootstrap(hits, images, draws=3).shape
        (3,)
    """
    if strata is not None:
        parts = []
        for stratum in np.unique(strata):
            rows = strata == stratum
            # Another seed each: strata are independent of one another.
            parts.append(cluster_bootstrap(values[rows], clusters[rows], draws=draws, seed=mix(seed, int(stratum))))
        return np.mean(parts, axis=0)
    _, cluster = np.unique(clusters, return_inverse=True)
    total = np.bincount(cluster, weights=values)
    count = np.bincount(cluster).astype(np.float64)
    size = len(count)
    generator = np.random.default_rng(seed)
    block = max(1, _HELD // size)
    means = []
    for start in range(0, draws, block):
        times = generator.multinomial(size, np.full(size, 1 / size), size=min(block, draws - start))
        means.append((times @ total) / (times @ count))
    return np.concatenate(means)


def interval(means: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The central share `level` of bootstrap means: (low, high)."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
