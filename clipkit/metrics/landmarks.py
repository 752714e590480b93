"""Metrics of landmark retrieval on the revisited Oxford and Paris benchmarks.

Radenović et al. 2018, "Revisiting Oxford and Paris", section 4. Average precision is defined as by Philbin et al. 2007:
the area under the curve of precision over recall, with straight lines between its points (trapezoidal rule).
"""

from math import comb

import numpy as np
from numpy.typing import NDArray


def trapezoidal_precision(places: NDArray[np.int64]) -> float:
    """Return the average precision of one query by the trapezoidal rule, 1/R Σ_j (p₋ + p₊) / 2.

    For the j-th correct image of the ranking, p₊ is the precision of the images up to and including this image, and p₋
    is the precision of the images before it. If there are no images before it, p₋ is 1.

    Args:
        places: (R,) places of the correct images in the ranking, counted from 0, ascending.

    Example:
        >>> trapezoidal_precision(np.array([0, 2]))
        0.7916666666666666
    """
    found = np.arange(len(places))
    without = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    return float(np.mean((without + (found + 1) / (places + 1)) / 2))


def precision_among_first(places: NDArray[np.int64], k: int) -> float:
    """Return the share of correct images among the first k of a ranking.

    If the last correct image is among the first k, the images after it are not counted.

    Args:
        places: (R,) places of the correct images in the ranking, counted from 0, ascending.
        k: number of images.

    Example:
        >>> precision_among_first(np.array([0, 2]), 10)
        0.6666666666666666
    """
    among = min(int(places[-1]) + 1, k)
    return int((places < among).sum()) / among


def trapezoidal_precision_by_chance(candidates: int, correct: int) -> float:
    """Return the expected value of `trapezoidal_precision` for candidates in random order."""
    if candidates == 1:
        return 1.0
    others = (correct - 1) / (candidates - 1)
    place = np.arange(candidates)
    without = np.where(place == 0, 1.0, others)
    return float(np.mean((without + (1 + place * others) / (place + 1)) / 2))


def precision_among_first_by_chance(candidates: int, correct: int, k: int) -> float:
    """Return the expected value of `precision_among_first` for candidates in random order."""
    k = min(k, candidates)
    ways = comb(candidates, correct)
    # The last correct image has place `last` with the probability comb(last - 1, correct - 1) / ways.
    ends_early = {last: comb(last - 1, correct - 1) / ways for last in range(correct, k + 1)}
    early = sum(share * correct / last for last, share in ends_early.items())
    return correct / candidates - correct / k * sum(ends_early.values()) + early
