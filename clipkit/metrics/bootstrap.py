"""Bootstrap confidence intervals of means and medians over queries.

Clusters of queries are resampled instead of single queries, e.g. all captions of an image together.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipkit.seeds import mix

DRAWS = 1000
_BLOCK = 1 << 22  # maximum number of counts in memory at once


def resampled(clusters: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Draw bootstrap resamples of clusters, and yield how often each cluster was drawn.

    Args:
        clusters: number of clusters. Each resample draws this number of clusters, with replacement.
        draws: number of resamples.
        seed: random seed. Calls with the same seed and number of clusters draw the same resamples.

    Yields:
        (R, clusters) counts for the next R resamples.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // clusters)
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
    """Return the mean of `values` in each bootstrap resample of their clusters (Efron and Tibshirani 1993, chapter 8).

    Args:
        values: (Q,) one value per query, e.g. 1.0 for a hit; or (Q, F), several values per query.
        clusters: (Q,) cluster of each query, e.g. its image. A drawn cluster includes all its queries.
        strata: (Q,) stratum of each query, e.g. its dataset. Clusters are drawn within each stratum, and the result is
            the mean of the strata's means. All queries of a cluster must be in one stratum.
        among: total number of clusters, including those without a query; the values of `clusters` are then indices
            from 0 to `among` - 1. Default: only the clusters that occur in `clusters`.
        draws: number of resamples.
        seed: random seed. Calls with the same seed and number of clusters draw the same resamples.

    Returns:
        (draws,) or (draws, F), one mean per resample; NaN for a resample without queries.

    Example:
        >>> hits, images = np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1])
        >>> cluster_bootstrap(hits, images, draws=3).shape
        (3,)
    """
    if strata is not None:
        parts = []
        for stratum in np.unique(strata):
            rows = strata == stratum
            # The seed depends on the stratum, so that the resamples of the strata are independent.
            parts.append(cluster_bootstrap(values[rows], clusters[rows], draws=draws, seed=mix(seed, int(stratum))))
        return np.mean(parts, axis=0)
    cluster, size = _numbered(clusters, among)
    columns = values.reshape(len(values), -1).T
    totals = np.stack([np.bincount(cluster, weights=column, minlength=size) for column in columns], axis=1)
    count = np.bincount(cluster, minlength=size).astype(np.float64)
    means = []
    for times in resampled(size, draws=draws, seed=seed):
        drawn = (times @ count)[:, None]
        # A resample that contains only clusters without queries has no mean.
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
    """Return the median rank of each bootstrap resample of the clusters.

    For an even number of ranks, the median is the mean of the two middle ranks, rounded down.

    Args:
        ranks: (Q,) one rank per query.
        clusters, among, draws, seed: as in `cluster_bootstrap`.
    """
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
    """Return the percentile confidence interval (low, high) of bootstrap means."""
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
