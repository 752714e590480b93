"""Results of a search."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.search.source import CAPTIONS, IMAGE, RESERVED


@dataclass(frozen=True)
class Hit:
    """An image that a search found."""

    row: int
    """Row of the index."""
    image: str
    """Location of the image, as the source writes it."""
    score: float
    """Cosine similarity with the query."""
    relevance: float | None
    """Estimated probability that the image is relevant to the query (see `clipkit.search.relevance`); None for a
    query with images."""
    captions: list[str]
    columns: dict[str, Any] = field(default_factory=dict)
    """Values of all other columns."""


def hits_of(
    table: pa.Table,
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    relevance: NDArray[np.float64] | None,
    shown: list[int],
) -> list[Hit]:
    """Return some of the results of a query as `Hit` objects.

    Args:
        table: rows of the index.
        scores, rows: (K,) score and row of each result, best first.
        relevance: (K,) probability that each result is relevant; None if unknown.
        shown: positions in `scores` and `rows` of the results to return.
    """
    chosen = np.ascontiguousarray(rows[shown], np.int64)  # pa.array would import pandas
    taken = table.take(pa.Array.from_buffers(pa.int64(), len(chosen), [None, pa.py_buffer(chosen)])).to_pylist()
    hits = []
    for n, values in zip(shown, taken, strict=True):
        columns = {name: value for name, value in values.items() if name not in RESERVED}
        probability = None if relevance is None else float(relevance[n])
        captions = values[CAPTIONS] or []
        hits.append(Hit(int(rows[n]), values[IMAGE], float(scores[n]), probability, captions, columns))
    return hits
