"""Robustness: how much a metric drops on shifted versions of a dataset."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.evaluation.suites.entries import Suite


def robustness(suite: Suite, rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """Return the relative drop and the effective robustness of each model on each shifted dataset.

    Effective robustness is the metric on the shifted dataset minus the expected metric (Taori et al. 2020, "Measuring
    robustness to natural distribution shifts", section 2). The function `expected` computes the expected metric.

    Args:
        suite: the suite, which names the original dataset of each shifted dataset and may contain published baseline
            values.
        rows: rows of a `SuiteResult`.
        models: names of the evaluated models. The first one is the baseline if the suite names no baseline.

    Returns:
        One dict per shifted dataset and model:

        - dataset, version_of: names of the shifted dataset and of the original dataset.
        - model: name of the model.
        - original, value: the metric on the original dataset, and on the shifted dataset.
        - relative_drop: (original − value) / original.
        - effective_robustness: None for a baseline, or if no baseline has a value on both datasets.
    """
    value = {(row["dataset"], row["model"]): row["value"] for row in rows}
    for entry in suite.datasets:
        for figure in entry.published:
            if figure.metric == entry.main_metric:
                value.setdefault((entry.name, figure.model), figure.value)
    baselines = suite.baselines or list(models[:1])
    drops = []
    for entry in suite.datasets:
        if entry.version_of is None:
            continue
        points = [(value.get((entry.version_of, name)), value.get((entry.name, name))) for name in baselines]
        known = [(base, shifted) for base, shifted in points if base is not None and shifted is not None]
        for model in models:
            shifted, original = value.get((entry.name, model)), value.get((entry.version_of, model))
            if shifted is None or original is None:
                continue
            effective = shifted - expected(original, known) if known and model not in baselines else None
            drops.append(
                {
                    "dataset": entry.name,
                    "version_of": entry.version_of,
                    "model": model,
                    "original": original,
                    "value": shifted,
                    "relative_drop": (original - shifted) / original if original else None,
                    "effective_robustness": effective,
                }
            )
    return drops


def robustness_means(drops: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean robustness of each model over the shifted versions of each original dataset.

    Args:
        drops: the result of `robustness`.

    Returns:
        One dict per original dataset and model: `version_of`, `model`, `versions` (number of shifted datasets), and the
        means of `relative_drop` and `effective_robustness`. A mean is None if no version has a value.
    """
    pairs = dict.fromkeys((drop["version_of"], drop["model"]) for drop in drops)
    means = []
    for version_of, model in pairs:
        rows = [drop for drop in drops if (drop["version_of"], drop["model"]) == (version_of, model)]
        known = {
            name: [row[name] for row in rows if row[name] is not None]
            for name in ("relative_drop", "effective_robustness")
        }
        means.append(
            {
                "version_of": version_of,
                "model": model,
                "versions": len(rows),
                **{name: sum(values) / len(values) if values else None for name, values in known.items()},
            }
        )
    return means


def expected(original: float, baselines: Sequence[tuple[float, float]]) -> float:
    """Return the metric on a shifted dataset that is expected from a model's metric on the original dataset.

    The expected metric is on a line in logit space, fitted to the baseline models by least squares. With one baseline,
    the line has slope 1.

    Args:
        original: the model's metric on the original dataset.
        baselines: for each baseline, the metrics on the original dataset and on the shifted dataset.

    Example:
        >>> round(expected(0.7, [(0.7, 0.5)]), 6)
        0.5
    """
    before, after = ([_logit(point[end]) for point in baselines] for end in (0, 1))
    middle, height = sum(before) / len(before), sum(after) / len(after)
    spread = sum((x - middle) ** 2 for x in before)
    slope = sum((x - middle) * (y - height) for x, y in zip(before, after, strict=True)) / spread if spread else 1.0
    return 1 / (1 + math.exp(-(height + slope * (_logit(original) - middle))))


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))
