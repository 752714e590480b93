"""Calibrated probability that a result is relevant, so that a search can report that nothing matches.

Scores are cosine similarities. The range of scores differs between queries and between images. Each score s of query q
and image i is therefore compared with two null distributions, i.e. distributions of scores of images and texts that do
not match:

    z = (s - m_q) / d_q     m_q: median of the scores of q with a sample of the images
                            d_q: lower spread of these scores, (median - lower quartile) / 0.6745, which the high
                            scores of relevant images do not affect
    h = (s - m_i) / d_i     m_i, d_i: mean and standard deviation of the scores of image i with a sample of captions

Five more numbers describe a result:

    e    logarithm of r / (N · (1 - Φ(z))), clipped to -3 … 12; r is the rank of the result, N is the number of searched
         images, and N · (1 - Φ(z)) is the expected number of images that reach z if all z are normally distributed
    g    difference between z and the z of the best other result
    and  the mean z of the five best results, the score s, and the lower spread d_q

A logistic regression with weights w and bias b combines the seven numbers f to a probability:

    P(relevant) = 1 / (1 + exp(-(b + Σ w_f f)))

The regression is fitted when the index is made. The queries for the fit are captions, and words from captions. For a
caption, its image is relevant. For a word, an image is relevant if at least 40 % of its captions contain the word.
Images with the word in fewer captions are left out. Each query is used twice: once with its relevant images in the
index, and once without them. Queries of one word have a separate regression. Without captions, an index has no
regression, and its results have no probability.

A search with a given precision returns the results whose probability reaches a threshold. The threshold is the smallest
value that reaches this precision on the queries of the fit. The precision is a mean over many queries.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sequences import evenly_spaced
from clipkit.search.nearest import Exact, as_float32

KINDS = ("short", "long")
"""Kinds of queries, each with a separate calibration: queries of one word, and queries of several words."""
DEPTH = 30
"""Results per query that are used for fitting."""
_SAMPLE = 4096  # number of images in the null distribution of a query
_REFERENCES = 512  # number of captions in the null distribution of an image
_QUERIES = 1000  # number of captions, and number of words, that are used as queries
_FEWEST = 50  # smallest number of captions for a calibration
_FEWEST_RESULTS = 5  # smallest number of results for which a precision is estimated
_WEIGHT_DECAY = 0.2  # divided by the number of results
_OFTEN = 0.4  # smallest share of an image's captions with a word for which the image is relevant
_MOST_POSSIBLE = 300  # largest number of images with a word that is used as a query; also at most a fifth of all images
_WORD = re.compile(r"[^\W\d_]{3,}")
_BLOCK = 65_536


@dataclass(frozen=True)
class Query:
    """A text whose relevant images are known."""

    text: str
    relevant: NDArray[np.int64]
    """Rows of the relevant images, ascending."""
    unknown: NDArray[np.int64]
    """Rows that may be relevant or not."""


class Nulls:
    """Null distributions of an index, i.e. distributions of scores of images and texts that do not match.

    Args:
        features: (N, D) features of the images.
        hubs: (N, 2) mean and standard deviation of each image's scores with a sample of captions.
    """

    def __init__(self, features: NDArray[np.float16], hubs: NDArray[np.float32]) -> None:
        self.features = features
        self.hubs = hubs
        self._sampled: NDArray[np.float32] | None = None

    def of_query(
        self,
        query: NDArray[np.float32],
        allowed: NDArray[np.int64] | None = None,
        without: NDArray[np.int64] | None = None,
    ) -> tuple[float, float]:
        """Return the median and the lower spread of a query's scores with a sample of images.

        Args:
            query: (D,) unit vector.
            allowed: rows that are searched, ascending. The sample is taken from these rows. None: all rows.
            without: rows that are left out of the sample.
        """
        total = len(self.features) if allowed is None else len(allowed)
        sample = np.array(evenly_spaced(total, _SAMPLE), np.int64)
        rows = sample if allowed is None else allowed[sample]
        if allowed is None and self._sampled is None:
            self._sampled = as_float32(self.features[rows])
        taken = self._sampled if allowed is None else as_float32(self.features[rows])
        assert taken is not None
        scores = (taken @ query).astype(np.float64)
        if without is not None:
            scores = scores[~np.isin(rows, without)]
        low, middle = np.quantile(scores, [0.25, 0.5])
        return float(middle), max(float(middle - low) / 0.6745, 1e-4)

    def evidence(
        self, scores: NDArray[np.float32], rows: NDArray[np.int64], null: tuple[float, float], total: int
    ) -> NDArray[np.float64]:
        """Return (K, 7) numbers that describe the K best results of a query.

        The docstring of the module defines the numbers. The probability of a result is computed from them.

        Args:
            scores, rows: (K,) score and row of each result, best first.
            null: median and lower spread of the query's scores, from `of_query`.
            total: number of images that were searched.
        """
        z = (scores - null[0]) / null[1]
        h = (scores - self.hubs[rows, 0]) / np.maximum(self.hubs[rows, 1], 1e-4)
        expected = total * np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z])  # N · (1 - Φ(z))
        excess = np.log(np.arange(1, len(z) + 1) / np.maximum(expected, 1e-9)).clip(-3, 12)
        gap = z - z[0]
        gap[0] = z[0] - z[1] if len(z) > 1 else 0.0
        same = np.ones(len(z))
        return np.stack([z, h, excess, gap, z[:5].mean() * same, scores.astype(np.float64), null[1] * same], axis=1)


@dataclass(frozen=True)
class Calibration:
    """Logistic regression that predicts whether a result is relevant, from the numbers of `Nulls.evidence`."""

    mean: Sequence[float]
    scale: Sequence[float]
    weights: Sequence[float]
    bias: float
    queries: int
    """Number of queries that it was fitted on."""
    curve: Sequence[Sequence[float]] = ()
    """Thresholds on the probability, ascending, each with the share of relevant results among those that reach it."""

    def probabilities(self, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (K,) probabilities that K results are relevant, from their (K, 7) evidence."""
        logits = self.bias + ((evidence - np.array(self.mean)) / np.array(self.scale)) @ np.array(self.weights)
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))

    def threshold(self, precision: float) -> float:
        """Return the smallest probability threshold at which the results have a given precision.

        The precision is the share of relevant results. The threshold is above 1 if the precision cannot be reached.
        """
        return next((threshold for threshold, reached in self.curve if reached >= precision), 1.1)


def hub_statistics(
    features: NDArray[np.float16], texts: NDArray[np.float16], captions: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Return the (N, 2) mean and standard deviation of each image's scores with a sample of captions of other images.

    Args:
        features: (N, D) features of the images.
        texts: (T, D) features of the distinct captions.
        captions: for each image, the rows of its captions in `texts`.
    """
    sample = evenly_spaced(len(texts), _REFERENCES)
    position = {text: column for column, text in enumerate(sample)}
    reference = as_float32(texts[sample]).T
    hubs = np.empty((len(features), 2), np.float32)
    for start in range(0, len(features), _BLOCK):
        scores = as_float32(features[start : start + _BLOCK]) @ reference
        counted = np.ones(scores.shape, bool)
        own = [
            (row, position[c]) for row, cs in enumerate(captions[start : start + _BLOCK]) for c in cs if c in position
        ]
        if own and len(sample) > 2:
            counted[tuple(np.array(own).T)] = False
            counted[~counted.any(axis=1)] = True  # all captions of the sample are those of the image
        mean = scores.mean(axis=1, where=counted)
        spread = scores.std(axis=1, where=counted)
        hubs[start : start + _BLOCK] = np.stack([mean, spread], axis=1)
    return hubs


def known_queries(captions: Sequence[Sequence[str]], seed: int = 0, most: int = _QUERIES) -> list[Query]:
    """Draw random captions and words as queries, and find their relevant images by the captions of the index.

    Args:
        captions: captions of each image.
        seed: seed of the random choice.
        most: maximum number of captions, and maximum number of words.
    """
    generator = np.random.default_rng(seed)
    rows_of_text: dict[str, list[int]] = {}
    rows_of_word: dict[str, dict[int, int]] = {}
    for row, texts in enumerate(captions):
        for text in texts:
            rows_of_text.setdefault(text, []).append(row)
        for word, count in Counter(word for text in texts for word in set(_WORD.findall(text.lower()))).items():
            rows_of_word.setdefault(word, {})[row] = count
    none = np.zeros(0, np.int64)
    texts = list(rows_of_text)
    chosen = generator.permutation(len(texts))[:most].tolist()
    queries = [Query(texts[n], np.array(sorted(set(rows_of_text[texts[n]]))), none) for n in chosen]
    words = []
    for word, counts in sorted(rows_of_word.items()):
        often = [row for row, count in counts.items() if count >= _OFTEN * len(captions[row])]
        if len(often) >= 2 and len(counts) <= min(_MOST_POSSIBLE, len(captions) // 5):
            rest = np.array(sorted(counts.keys() - set(often)), np.int64)
            words.append(Query(word, np.array(often), rest))
    return queries + [words[n] for n in generator.permutation(len(words))[:most].tolist()]


def judged(
    nulls: Nulls, queries: Sequence[Query], features: NDArray[np.float32]
) -> Iterator[tuple[Query, NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield the results of each query twice, first with its relevant images in the index and then without them.

    Args:
        nulls: null distributions of the index.
        queries: Q queries whose relevant images are known.
        features: (Q, D) features of the queries.

    Yields:
        The query, the (K, 7) evidence of its best results, and a (K,) mask of the relevant results.
    """
    possible = [np.union1d(query.relevant, query.unknown) for query in queries]
    deepest = DEPTH + max((len(rows) for rows in possible), default=0)
    best_scores, best_rows = Exact(nulls.features).top(features, deepest)
    for query, feature, out, scores, rows in zip(queries, features, possible, best_scores, best_rows, strict=True):
        known = np.isin(rows, query.unknown)
        for here in (np.arange(len(rows)) < DEPTH, ~np.isin(rows, out)):
            kept = np.flatnonzero(here)[:DEPTH]
            if len(kept) < 2:
                continue
            is_absent = not np.isin(rows[kept], query.relevant).any()
            null = nulls.of_query(feature, without=out if is_absent else None)
            total = len(nulls.features) - (len(out) if is_absent else 0)
            sure = ~known[kept]
            evidence = nulls.evidence(scores[kept], rows[kept], null, total)[sure]
            yield query, evidence, np.isin(rows[kept][sure], query.relevant)


def is_short(text: str) -> bool:
    """Return whether a query has at most one word."""
    return len(text.split()) < 2


def fit(
    nulls: Nulls, captions: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], NDArray[np.float32]]
) -> dict[str, dict[str, Any]]:
    """Fit one `Calibration` for short queries and one for long queries, and return them as dicts.

    A calibration is left out if it has too few queries.

    Args:
        nulls: null distributions of the index.
        captions: captions of each image.
        encode: function that returns the (Q, D) features of texts.
    """
    known = known_queries(captions)
    fitted = {}
    for kind in KINDS:
        queries = [query for query in known if is_short(query.text) == (kind == "short")]
        if len(queries) < _FEWEST:
            continue
        results = list(judged(nulls, queries, encode([query.text for query in queries])))
        calibration = regression([part for _, part, _ in results], [part for _, _, part in results])
        if calibration is not None:
            fitted[kind] = asdict(calibration)
    return fitted


def regression(evidence: Sequence[NDArray[np.float64]], labels: Sequence[NDArray[np.bool_]]) -> Calibration | None:
    """Fit the logistic regression that predicts whether a result is relevant, from its evidence.

    Args:
        evidence: for each query, the (K, 7) evidence of its results.
        labels: for each query, a (K,) mask of the relevant results.

    Returns:
        The fitted regression. None if all results are relevant or all are irrelevant.
    """
    x, y = np.concatenate(evidence), np.concatenate(labels)
    if y.all() or not y.any():
        return None
    import torch

    from clipkit.metrics import logistic_regression

    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    standardized, relevant = torch.from_numpy((x - mean) / scale), torch.from_numpy(y).long()
    fitted = logistic_regression(standardized, relevant, 2, _WEIGHT_DECAY / len(x))
    # Two classes with weights -w/2 and w/2 are one logistic regression with the weights w.
    weights, bias = fitted.weight[1] - fitted.weight[0], fitted.bias[1] - fitted.bias[0]
    plain = Calibration(
        mean=[float(f"{value:.6g}") for value in mean],
        scale=[float(f"{value:.6g}") for value in scale],
        weights=[float(f"{value:.6g}") for value in weights.tolist()],
        bias=float(f"{bias.item():.6g}"),
        queries=len(evidence),
    )
    return replace(plain, curve=_curve(plain.probabilities(x), y))


def _curve(probabilities: NDArray[np.float64], labels: NDArray[np.bool_]) -> list[list[float]]:
    """Return up to 100 pairs (threshold, precision) in ascending order of the threshold.

    The precision is the share of relevant results among the results whose probability reaches the threshold.
    """
    order = np.argsort(-probabilities, kind="stable")
    right = np.cumsum(labels[order])
    counts = np.unique(np.geomspace(_FEWEST_RESULTS, max(_FEWEST_RESULTS, len(order)), 100).astype(np.int64))
    # Two irrelevant results are added, so that a few results cannot have a high precision by chance.
    points = [(float(probabilities[order[n - 1]]), float(right[n - 1] / (n + 2))) for n in counts if n <= len(order)]
    return [[float(f"{value:.4g}") for value in point] for point in reversed(points)]


def calibrations_of(manifest: Mapping[str, Any]) -> dict[str, Calibration]:
    """Read the `Calibration` for "short" queries and for "long" queries from a manifest."""
    recorded = manifest.get("relevance")
    if not isinstance(recorded, dict):
        return {}
    try:
        return {kind: Calibration(**recorded[kind]) for kind in KINDS if kind in recorded}
    except TypeError:  # keys of the manifest that are not fields of Calibration
        return {}
