"""How a model holds up where the data shifts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.evaluation.suites.entries import Suite


def robustness(suite: Suite, rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """For each model and shifted data set the drop, and what of it the baseline would not lead to expect.

    Effective robustness is the figure on the shifted set less the one expected from the figure on the original (Taori
    et al. 2020, "Measuring robustness to natural distribution shifts", section 2). Expected is what lies on the line
    of the baselines in logits: with two or more the one that fits them by least squares, with one that through it
    with slope 1, by which a model that is better on the original is better on the shifted set by as much.

    Args:
        suite: its data sets say what they are versions of, and may hold published figures of a baseline.
        rows: of a `SuiteResult`.
        models: those measured; the first one is the baseline where the suite names none.

    Returns:
        Rows with dataset, version_of, model, original, value, relative_drop (a share of the original), and
        effective_robustness; null for a baseline itself, or where none is known.
    """
    value = {(row["dataset"], row["model"]): row["value"] for row in rows}
    for entry in suite.datasets:
        for own in entry.published:
            if own.metric == entry.main_metric:
                value.setdefault((entry.name, own.model), own.value)
    baselines = suite.baselines or list(models[:1])
    found = []
    for entry in suite.datasets:
        if entry.version_of is None:
            continue
        points = [(value.get((entry.version_of, own)), value.get((entry.name, own))) for own in baselines]
        known = [(base, shifted) for base, shifted in points if base is not None and shifted is not None]
        for model in models:
            shifted, original = value.get((entry.name, model)), value.get((entry.version_of, model))
            if shifted is None or original is None:
                continue
            effective = shifted - expected(original, known) if known and model not in baselines else None
            found.append(
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
    return found


def robustness_means(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each model, over the versions of each data set: how many there are, and the means of what is known.

    Args:
        found: what `robustness` gives.
    """
    pairs = dict.fromkeys((own["version_of"], own["model"]) for own in found)
    means = []
    for version_of, model in pairs:
        rows = [own for own in found if (own["version_of"], own["model"]) == (version_of, model)]
        of = {
            name: [own[name] for own in rows if own[name] is not None]
            for name in ("relative_drop", "effective_robustness")
        }
        means.append(
            {
                "version_of": version_of,
                "model": model,
                "versions": len(rows),
                **{name: sum(values) / len(values) if values else None for name, values in of.items()},
            }
        )
    return means


def expected(original: float, baselines: Sequence[tuple[float, float]]) -> float:
    """The figure on the shifted set that the baselines would lead to expect.

    Args:
        original: a model's figure on the original.
        baselines: of each its figures on the original and on the shifted set.

    Example:
        >>> round(expected(0.7, [(0.7, 0.5)]), 6)
        0.5
    """
    before, after = ([_logit(own[end]) for own in baselines] for end in (0, 1))
    middle, height = sum(before) / len(before), sum(after) / len(after)
    spread = sum((x - middle) ** 2 for x in before)
    slope = sum((x - middle) * (y - height) for x, y in zip(before, after, strict=True)) / spread if spread else 1.0
    return 1 / (1 + math.exp(-(height + slope * (_logit(original) - middle))))


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))
