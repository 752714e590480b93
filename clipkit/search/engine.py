"""Approximate search of large indexes with FAISS.

Features are grouped into cells (IVF) and stored as 8-bit codes (SQ8). A search takes the best candidates from the cells
nearest to the query. The scores of the candidates are then computed exactly, in float32.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.sequences import evenly_spaced
from clipkit.errors import DataError, one_line
from clipkit.extras import check_extra
from clipkit.search.layout import damaged
from clipkit.search.nearest import Exact, Nearest, best_of, scores_of

NAME = "FAISS IVF, SQ8"
LEAST_ROWS = 50_000
"""Number of rows from which an engine is faster than a comparison with every row."""
_TRAINED = 40  # number of rows per cell from which the positions of the cells are computed
_BLOCK = 65_536
_PROBES = 64
_CANDIDATES = 200


def build(features: NDArray[np.float16], file: Path) -> None:
    """Build a FAISS search engine for the features, and write it to a file.

    Raises:
        DataError: FAISS is not installed.
    """
    check_extra("search", ["faiss"], DataError)
    import faiss

    count, width = features.shape
    cells = int(2 ** np.clip(np.round(np.log2(np.sqrt(count))), 4, 12))
    index = faiss.index_factory(width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    index.train(features[evenly_spaced(count, _TRAINED * cells)].astype(np.float32))
    for start in range(0, count, _BLOCK):
        index.add(features[start : start + _BLOCK].astype(np.float32))
    faiss.write_index(index, str(file))


def is_installed() -> bool:
    """Return whether FAISS can be imported."""
    return importlib.util.find_spec("faiss") is not None


def recall(engine: Nearest, features: NDArray[np.float16], queries: NDArray[np.float32]) -> float:
    """Return recall@10: the share of the ten best rows of exact search that a search engine finds."""
    found, right = engine.top(queries, 10)[1], Exact(features).top(queries, 10)[1]
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), right.tolist(), strict=True)) / right.size


def open_engine(features: NDArray[np.float16], file: Path) -> "FaissEngine":
    """Open a FAISS search engine from the file that `build` wrote, memory-mapped.

    Args:
        features: (N, D) features of the images.
        file: file of the FAISS index.

    Raises:
        DataError: FAISS is not installed, or the file is damaged.
    """
    check_extra("search", ["faiss"], DataError)
    import faiss

    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise damaged(file, one_line(error)) from None
    if (index.ntotal, index.d) != features.shape:
        raise damaged(file, f"it has {index.ntotal} rows of width {index.d}, which do not fit the features")
    return FaissEngine(features, index, file)


class FaissEngine:
    """Search with FAISS, or exact search if `rows` selects fewer than 50,000 rows.

    Args:
        features: (N, D) features of the images.
        index: FAISS index of the features.
        file: file of the index, for error messages.
    """

    name = NAME

    def __init__(self, features: NDArray[np.float16], index: Any, file: Path) -> None:
        self.features = features
        self.index = index
        self.file = file
        self.exact = Exact(features)

    def top(
        self, queries: NDArray[np.float32], count: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the highest scores and their rows for each query, as specified by `Nearest.top`."""
        import faiss

        candidates = max(_CANDIDATES, 4 * count)
        if (rows is not None and len(rows) < LEAST_ROWS) or candidates > len(self.features):
            return self.exact.top(queries, count, rows)
        settings = faiss.SearchParametersIVF(nprobe=min(self.index.nlist, _PROBES))
        if rows is not None:
            settings.sel = faiss.IDSelectorBatch(rows)
        found = self.index.search(np.ascontiguousarray(queries), candidates, params=settings)[1]
        if (found < 0).any():  # the cells that were searched hold too few of the rows
            return self.exact.top(queries, count, rows)
        if (found >= len(self.features)).any():
            raise damaged(self.file, f"it contains a row number that is not below {len(self.features):,}")
        found = np.sort(found, axis=1)
        return best_of(scores_of(self.features, queries, found), found, count)
