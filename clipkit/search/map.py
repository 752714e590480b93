"""Map of an index: a position in two dimensions for each image, so that similar images are near each other.

The features are reduced to 50 principal components, and then to two dimensions by t-SNE (van der Maaten and Hinton
2008). t-SNE uses Euclidean distances, which order pairs of unit vectors in the same way as cosine similarities.
Distances between groups that are far apart mean little.
"""

import io
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from clipkit.data.sequences import evenly_spaced
from clipkit.errors import DataError
from clipkit.extras import check_extra
from clipkit.files import write_whole
from clipkit.search.index import Index
from clipkit.search.labels import labels_of
from clipkit.search.nearest import unit_vectors

log = logging.getLogger("clipkit")

MOST = 20_000
"""Largest number of images on a map; of a larger index, evenly spaced rows are shown."""
SEED = 0
_COMPONENTS = 50
_STEPS = 500
_PERPLEXITY = 30
_COLORS = 9


@dataclass(frozen=True)
class Map:
    """Positions of S images of an index on its map."""

    rows: NDArray[np.int64]
    """(S,) rows of the index, ascending."""
    positions: NDArray[np.float32]
    """(S, 2) positions in [0, 1]."""


def map_of(index: Index) -> Map:
    """Return the map of an index. The map is computed once and stored in the folder of the index.

    The file is `map-….parquet` with the columns row, x and y. `clipkit.embed` removes the file when it writes the index
    again. If the folder is not writable, each call computes the map again.

    Raises:
        DataError: scikit-learn is not installed.
    """
    features = index.manifest["files"]["features"]["sha256"]
    made_by = {"method": f"t-SNE {_STEPS}, perplexity {_PERPLEXITY}", "seed": str(SEED), "features": features}
    file = index.path / f"map-{features[:16]}.parquet"
    kept = _read(file, made_by, len(index))
    if kept is not None:
        return kept
    rows = np.array(evenly_spaced(len(index), MOST), np.int64)
    made = Map(rows, positions_of(index.unit_features(rows)))
    _write(file, made_by, made)
    return made


def positions_of(features: NDArray[np.float32], seed: int = SEED) -> NDArray[np.float32]:
    """Return the (N, 2) positions of (N, D) features on a map, computed by t-SNE. Coordinates are in [0, 1].

    Up to four features are placed on a line, without t-SNE.

    Raises:
        DataError: scikit-learn is not installed.
    """
    check_extra("report", ["sklearn"], DataError)
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 5:
        return np.stack([np.linspace(0, 1, len(features)), np.full(len(features), 0.5)], axis=1).astype(np.float32)
    units = unit_vectors(features)
    components = min(_COMPONENTS, *units.shape)
    reduced = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(units)
    perplexity = min(_PERPLEXITY, (len(units) - 1) / 3)
    made = TSNE(init="pca", perplexity=perplexity, max_iter=_STEPS, random_state=seed).fit_transform(reduced)
    low, high = made.min(axis=0), made.max(axis=0)
    return ((made - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def colors_of(index: Index, column: str, rows: NDArray[np.int64]) -> tuple[list[str], list[int]]:
    """Return up to nine most frequent labels of the given rows, and a color number for each row.

    The color number is the position of the row's label in the returned list. Rows with another label or without a label
    get the length of the list as their color number.

    Raises:
        DataError: the index has no such column of labels.
    """
    labels = labels_of(index, column)[rows]
    names = [name for name, _ in Counter(label for label in labels if label is not None).most_common(_COLORS)]
    number_of = {name: number for number, name in enumerate(names)}
    return names, [number_of.get(label, len(names)) for label in labels]


def _read(file: Path, made_by: dict[str, str], count: int) -> Map | None:
    """Read a stored map. The result is None if the file is missing, invalid or outdated.

    Args:
        made_by: metadata that an up-to-date file contains.
        count: number of images in the index.
    """
    try:
        opened = parquet.ParquetFile(file)
        metadata = {key.decode(): value.decode() for key, value in (opened.schema_arrow.metadata or {}).items()}
        if not made_by.items() <= metadata.items():
            return None
        table = opened.read()
        rows, x, y = (table[name].to_numpy() for name in ("row", "x", "y"))
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    positions = np.stack([x, y], axis=1).astype(np.float32)
    is_valid = len(rows) == min(count, MOST) and ((rows >= 0) & (rows < count) & np.isfinite(x + y)).all()
    return Map(rows.astype(np.int64), positions) if is_valid else None


def _write(file: Path, made_by: dict[str, str], made: Map) -> None:
    x, y = made.positions.T
    table = pa.table({"row": made.rows, "x": x, "y": y}).replace_schema_metadata(made_by)
    content = io.BytesIO()
    parquet.write_table(table, content)
    try:
        write_whole(file, content.getvalue())
    except OSError as error:
        log.warning(
            "%s: the map cannot be stored (%s), so each start of clipkit browse computes it again; "
            "make the folder of the index writable",
            file,
            error.strerror,
        )
