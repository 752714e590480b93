"""Measure the relevance that a search states, as JSON: reliability, and precision and recall at stated precisions.

    clipkit embed ../shared/flickr8k/dev.csv --model runs/flickr8k_towers --out dev.index
    python benchmarks/relevance.py dev.index [--seeds 5]

Half of the images, drawn at random, form the index. Half of its captions' queries (captions and words, as
`clipkit.search.relevance` draws them) fit the calibration, the other half measure it: each of them once with its
relevant images in the index and once without them. The recall is the share of the relevant results among the best 30;
`best_recall` is the largest that any threshold on the probability reaches at the stated precision, chosen with the
answers, and `best_recall_of_score` the same for a threshold on the cosine similarity.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.search import Index
from clipkit.search.relevance import (
    KINDS,
    Nulls,
    hub_statistics,
    is_short,
    judged,
    known_queries,
    regression,
)

_STATED = (0.5, 0.7, 0.8, 0.9, 0.95)
_SCORE = 5  # position of the cosine similarity in the evidence


def measure(index: Index, seed: int) -> dict[str, Any]:
    """Return probabilities, labels and scores of the results of each measured query, by kind of query."""
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.permutation(len(index))[: len(index) // 2])
    captions = [index.rows["captions"][int(row)].as_py() for row in rows]
    position = {text: number for number, text in enumerate(index.texts)}
    own = [[position[text] for text in texts] for texts in captions]
    used = np.unique([number for numbers in own for number in numbers])
    place = {int(number): row for row, number in enumerate(used)}
    features = np.asarray(index.features[rows])
    hubs = hub_statistics(features, np.asarray(index.text_features[used]), [[place[n] for n in ns] for ns in own])
    nulls = Nulls(features, hubs)
    queries = known_queries(captions, seed, 2000)
    fits = generator.random(len(queries)) < 0.5
    found: dict[str, Any] = {}
    for kind in KINDS:
        of_kind = [n for n, query in enumerate(queries) if is_short(query.text) == (kind == "short")]
        results = {}
        for fitting in (True, False):
            chosen = [queries[n] for n in of_kind if fits[n] == fitting]
            results[fitting] = list(judged(nulls, chosen, index.encoder.encode_text([query.text for query in chosen])))
        fitted = regression(*([part[n] for part in results[True]] for n in (1, 2)))
        if fitted is not None:
            measured = [(fitted.probabilities(x), y, x[:, _SCORE]) for _, x, y in results[False]]
            found[kind] = (measured, [fitted.threshold(stated) for stated in _STATED])
    return found


def best_recall(values: NDArray[np.float64], labels: NDArray[np.bool_], precision: float) -> float:
    """Return the largest recall of a threshold on `values` with at least this precision."""
    order = np.argsort(-values, kind="stable")
    right = np.cumsum(labels[order])
    reached = np.flatnonzero(right / np.arange(1, len(order) + 1) >= precision)
    return float(right[reached[-1]] / max(1, labels.sum())) if len(reached) else 0.0


def summary(draws: list[tuple[list[tuple[NDArray[Any], ...]], list[float]]]) -> dict[str, Any]:
    """Return reliability and, for each stated precision, what was reached, over the draws."""
    parts = [[np.concatenate([entry[n] for entry in measured]) for n in range(3)] for measured, _ in draws]
    p, y = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    bins = np.minimum((p * 10).astype(int), 9)
    reliability = [
        {"stated": round(float(p[bins == b].mean()), 3), "found": round(float(y[bins == b].mean()), 3), "results": n}
        for b in range(10)
        if (n := int((bins == b).sum()))
    ]
    rows = []
    for number, stated in enumerate(_STATED):
        shown = [part[0] >= thresholds[number] for part, (_, thresholds) in zip(parts, draws, strict=True)]
        right = sum(int(part[1][mask].sum()) for part, mask in zip(parts, shown, strict=True))
        count = sum(int(mask.sum()) for mask in shown)
        rows.append(
            {
                "stated": stated,
                "precision": round(right / count, 3) if count else None,
                "shown": count,
                "recall": round(right / int(y.sum()), 3),
                "best_recall": round(float(np.mean([best_recall(part[0], part[1], stated) for part in parts])), 3),
                "best_recall_of_score": round(
                    float(np.mean([best_recall(part[2], part[1], stated) for part in parts])), 3
                ),
            }
        )
    return {"queries": sum(len(measured) for measured, _ in draws), "reliability": reliability, "precision": rows}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    index = Index(arguments.index)
    results = [measure(index, seed) for seed in range(arguments.seeds)]
    print(json.dumps({kind: summary([part[kind] for part in results if kind in part]) for kind in KINDS}, indent=1))


if __name__ == "__main__":
    main()
