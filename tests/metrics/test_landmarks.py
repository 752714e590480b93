"""Average precision by trapezoids and precision among the first images, compared with sums over the whole ranking."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clipkit.metrics.landmarks import (
    precision_among_first,
    precision_among_first_by_chance,
    trapezoidal_precision,
    trapezoidal_precision_by_chance,
)


def area(right: NDArray[np.bool_]) -> float:
    """Return the area under precision over recall, by the trapezoids between all places of the ranking."""
    total, found, precision = 0.0, 0, 1.0
    for place, correct in enumerate(right, 1):
        found += int(correct)
        total += (found / place + precision) / 2 * int(correct) / right.sum()
        precision = found / place
    return total


@pytest.mark.parametrize(("candidates", "correct"), [(1, 1), (7, 1), (7, 3), (30, 12), (30, 30)])
def test_values_and_chance_equal_sums_over_rankings(candidates: int, correct: int) -> None:
    generator = np.random.default_rng(candidates)
    areas, among_first = [], []
    for _ in range(4000):
        right = generator.permutation(candidates) < correct
        places = np.flatnonzero(right)
        areas.append(trapezoidal_precision(places))
        among_first.append([precision_among_first(places, k) for k in (1, 5, 10)])
        if len(areas) < 50:
            assert areas[-1] == pytest.approx(area(right))
            shown = [right[: min(k, int(places[-1]) + 1)] for k in (1, 5, 10)]
            assert among_first[-1] == pytest.approx([part.mean() for part in shown])
    assert np.mean(areas) == pytest.approx(trapezoidal_precision_by_chance(candidates, correct), abs=0.02)
    expected = [precision_among_first_by_chance(candidates, correct, k) for k in (1, 5, 10)]
    assert np.mean(among_first, axis=0) == pytest.approx(expected, abs=0.03)
