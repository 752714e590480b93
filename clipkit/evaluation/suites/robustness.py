"""How a model holds up where the data shifts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.evaluation.suites.entries import Suite


def robustness(suite: Suite, rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """For each model and shifted data set the drop, and what of it the baseline would not lead to expect.

    Effective robustness is the figure on the shifted set less the one expected from the figure on the original (Taori
    et al. 2020, "Measuring robustness to natural distribution shifts", section 2). Expected is what lies on the line
    through the baseline that has slope 1 in logits: a model that is better on the original is expected to be better on
    the shifted set by as much.

    Args:
        suite: its data sets say what they are versions of.
        rows: of a `SuiteResult`.
        models: those measured; the first one is the baseline where the suite names none.

    Returns:
        Rows with dataset, version_of, model, original, value, relative_drop (a share of the original), and
        effective_robustness; null for the baseline itself, or where it was not measured.
    """
    value = {(row["dataset"], row["model"]): row["value"] for row in rows}
    baseline = suite.baseline or models[0]
    found = []
    for entry in suite.datasets:
        if entry.version_of is None:
            continue
        for model in models:
            shifted, original = value.get((entry.name, model)), value.get((entry.version_of, model))
            if shifted is None or original is None:
                continue
            base, base_shifted = value.get((entry.version_of, baseline)), value.get((entry.name, baseline))
            effective = None
            if model != baseline and base is not None and base_shifted is not None:
                effective = shifted - expected(original, base, base_shifted)
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


def expected(original: float, baseline: float, baseline_shifted: float) -> float:
    """The figure on the shifted set that the baseline would lead to expect.

    Example:
        >>> round(expected(0.7, 0.7, 0.5), 6)
        0.5
    """
    moved = _logit(original) + _logit(baseline_shifted) - _logit(baseline)
    return 1 / (1 + math.exp(-moved))


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))
