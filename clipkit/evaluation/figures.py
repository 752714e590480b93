"""Metrics with bootstrap confidence intervals, computed from one value per query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit.metrics import cluster_bootstrap, cluster_bootstrap_median, interval, median_rank


class Figure(TypedDict):
    """One metric: its value, the ends of its 95 % interval, and the value expected by chance.

    The value is in [0, 1], except for ranks. An undefined value is None.
    """

    value: float | None
    low: float | None
    high: float | None
    chance: float | None


@dataclass(frozen=True, eq=False)
class Queries:
    """Clusters of queries for the bootstrap.

    A cluster is a group of queries that is drawn as a whole, e.g. all captions of an image. If there are strata, e.g.
    classes, the clusters of each stratum are drawn separately.
    """

    clusters: NDArray[np.int64]
    strata: NDArray[np.int64] | None = None
    among: int | None = None
    """Number of clusters; necessary only if some clusters have no query."""


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one metric, one per query.

    The metric is the mean of the values, or their median. With strata, the metric is the mean of the strata's means.
    """

    queries: Queries
    values: NDArray[np.float64]
    median: bool = False

    @property
    def value(self) -> float:
        """Value of the metric over all queries."""
        if self.median:
            return median_rank(torch.from_numpy(self.values))
        if self.queries.strata is None:
            return float(self.values.mean())
        _, stratum = np.unique(self.queries.strata, return_inverse=True)
        return float(np.mean(np.bincount(stratum, weights=self.values) / np.bincount(stratum)))


Columns = Mapping[str, Column]
# Metrics that are means of other metrics: name of the mean -> names of the other metrics.
Means = Mapping[str, Sequence[str]]


def values(columns: Columns, means: Means | None = None) -> dict[str, float]:
    """Return the value of every metric.

    Args:
        columns: the per-query values of each metric.
        means: metrics that average other metrics, with the names of the averaged metrics.
    """
    metrics: dict[str, float] = {}
    for name, column in columns.items():
        metrics[name] = column.value
        for mean, parts in (means or {}).items():
            if name == parts[-1]:
                metrics[mean] = float(np.mean([metrics[part] for part in parts]))
    return metrics


def draws(columns: Columns, means: Means | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the values of every metric on 1,000 bootstrap resamples. All metrics use the same resamples.

    Args:
        columns: the per-query values of each metric.
        means: metrics that average other metrics, with the names of the averaged metrics.
    """
    metrics: dict[str, NDArray[np.float64]] = {}
    for queries in {id(column.queries): column.queries for column in columns.values()}.values():
        together = [name for name, c in columns.items() if c.queries is queries and not c.median]
        if together:
            table = np.stack([columns[name].values for name in together], axis=1)
            resampled = cluster_bootstrap(table, queries.clusters, queries.strata, among=queries.among)
            metrics |= {name: resampled[:, index] for index, name in enumerate(together)}
    for name, column in columns.items():
        if column.median:
            queries = column.queries
            ranks = column.values.astype(np.int64)
            metrics[name] = cluster_bootstrap_median(ranks, queries.clusters, among=queries.among)
    return metrics | {name: np.mean([metrics[part] for part in parts], axis=0) for name, parts in (means or {}).items()}


def figures(columns: Columns, chance: Mapping[str, float | None], means: Means | None = None) -> dict[str, Figure]:
    """Return the value, the 95 % interval and the chance level of every metric.

    Args:
        columns: the per-query values of each metric.
        chance: chance level of each metric.
        means: metrics that average other metrics, with the names of the averaged metrics.
    """
    resampled = draws(columns, means)
    return {name: figure(value, resampled[name], chance.get(name)) for name, value in values(columns, means).items()}


def figure(value: float | None, resampled: NDArray[np.float64] | None, chance: float | None) -> Figure:
    """Return the value, the 95 % interval and the chance level of one metric.

    Args:
        value: value of the metric; None: undefined.
        resampled: values on bootstrap resamples; None: the metric has no interval.
        chance: chance level; None: unknown.
    """
    low, high = interval(resampled) if resampled is not None and value is not None else (None, None)
    return {"value": value, "low": low, "high": high, "chance": chance}
