"""Measure how many swapped captions `doubtful_captions` finds, as JSON.

    clipkit embed dev.csv --model M --out dev.index
    python benchmarks/doubtful_captions.py dev.index [--share 0.1] [--seeds 5]

A share of the captions is dealt to other images at random; the index is then read as if it had been made from this
data, and is not changed. Reported is the share of the swapped captions that are found with a precision of 90 %, for
each seed: by the fit to the image alone, and together with the agreement with the image's other captions. The model
should not have been trained on the data of the index.
"""

import argparse
import json

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.search import Index
from clipkit.search.curation import doubtful_captions
from clipkit.search.source import CAPTIONS


def swapped(index: Index, share: float, seed: int) -> tuple[Index, set[tuple[int, str]]]:
    """Return the index with swapped captions, and these captions with their new rows."""
    generator = np.random.default_rng(seed)
    captions = [list(texts) for texts in index.rows[CAPTIONS].to_pylist()]
    positions = [(row, n) for row, texts in enumerate(captions) for n in range(len(texts))]
    chosen = [positions[n] for n in generator.permutation(len(positions))[: int(share * len(positions))]]
    texts = [captions[row][n] for row, n in chosen]
    moved = set()
    for (row, n), (source, _), text in zip(chosen, chosen[1:] + chosen[:1], texts[1:] + texts[:1], strict=True):
        captions[row][n] = text
        if row != source:
            moved.add((row, text))
    changed = Index(index.path)
    column = changed.rows.column_names.index(CAPTIONS)
    changed.rows = changed.rows.set_column(column, CAPTIONS, pa.array(captions))
    return changed, moved


def found(wrong: NDArray[np.bool_], precision: float = 0.9) -> float:
    """Return the largest share of the wrong captions at a precision, given captions from the most doubtful on."""
    right = np.cumsum(wrong)
    reached = np.flatnonzero(right / np.arange(1, len(wrong) + 1) >= precision)
    return float(right[reached[-1]] / right[-1]) if len(reached) else 0.0


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    index, results = Index(arguments.index), []
    for seed in range(arguments.seeds):
        changed, moved = swapped(index, arguments.share, seed)
        entries = doubtful_captions(changed, 10**9)
        by_fit = sorted(entries, key=lambda entry: entry.fit)
        shares = [found(np.array([(e.row, e.caption) in moved for e in order])) for order in (by_fit, entries)]
        results.append({"seed": seed, "captions": len(entries), "swapped": len(moved)} | dict(
            zip(("found_by_fit", "found"), (round(share, 3) for share in shares), strict=True)
        ))  # fmt: skip
    print(json.dumps({"index": arguments.index, "share": arguments.share, "results": results}, indent=2))


if __name__ == "__main__":
    main()
