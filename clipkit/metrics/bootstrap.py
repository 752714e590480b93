"""Intervals by resampling clusters of queries."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipkit.seeds import mix

DRAWS = 1000
_HELD = 1 << 22  # resampling counts held at once


def resampled(clusters: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """How often each cluster is drawn, in blocks (repetitions, clusters), by drawing as many as there are.

    The same seed and number of clusters give the same draws, so that figures can be compared in pairs.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _HELD // clusters)
    for start in range(0, draws, block):
        height = min(block, draws - start)
        drawn = generator.integers(0, clusters, (height, clusters), dtype=np.uint32)
        yield np.stack([np.bincount(row, minlength=clusters) for row in drawn]).astype(np.float64)


def cluster_bootstrap(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    strata: NDArray[np.int64] | None = None,
    *,
    among: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Means of `values` over resampled clusters (Efron and Tibshirani 1993, chapter 8).

    Args:
        values: (Q,) one figure a query, as 1.0 for a hit; or (Q, F), several at once.
        clusters: (Q,) the cluster of each query, as its image: clusters are drawn whole, with replacement.
        strata: (Q,) where given, clusters are drawn within each stratum and the result is the mean over strata of
            each stratum's mean. A cluster lies in one stratum.
        among: number of clusters, where some have no query here and `clusters` are numbers below it; without it, the
            clusters are those that occur.
        draws: number of repetitions.
        seed: the same seed and number of clusters give the same draws, so differences of two figures can be paired.

    Returns:
        (draws,) or (draws, F), one mean a repetition.

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
    cluster, size = _numbered(clusters, among)
    columns = values.reshape(len(values), -1).T
    totals = np.stack([np.bincount(cluster, weights=column, minlength=size) for column in columns], axis=1)
    count = np.bincount(cluster, minlength=size).astype(np.float64)
    means = []
    for times in resampled(size, draws=draws, seed=seed):
        drawn = (times @ count)[:, None]
        # A draw of none but clusters without a query has no mean.
        means.append(np.divide(times @ totals, drawn, out=np.full((len(times), len(columns)), np.nan), where=drawn > 0))
    return np.concatenate(means).reshape(draws, *values.shape[1:])


def cluster_bootstrap_median(
    ranks: NDArray[np.int64],
    clusters: NDArray[np.int64],
    *,
    among: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Median ranks over resampled clusters, as `cluster_bootstrap` gives means; an even number's is rounded down."""
    cluster, size = _numbered(clusters, among)
    order = np.argsort(ranks, kind="stable")
    ranks, cluster = ranks[order], cluster[order]
    medians = []
    for block in resampled(size, draws=draws, seed=seed):
        for times in block:
            up_to = np.cumsum(times[cluster])
            if up_to[-1] == 0:
                medians.append(np.nan)
                continue
            middle = np.searchsorted(up_to, [(up_to[-1] - 1) // 2, up_to[-1] // 2], side="right")
            medians.append(float(ranks[middle].sum() // 2))
    return np.array(medians)


def _numbered(clusters: NDArray[np.int64], among: int | None) -> tuple[NDArray[np.int64], int]:
    if among is not None:
        return clusters, among
    present, cluster = np.unique(clusters, return_inverse=True)
    return cluster, len(present)


def interval(means: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The central share `level` of bootstrap means: (low, high)."""
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
