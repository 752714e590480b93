"""Find images whose label is probably wrong, by the labels of similar images.

The ten most similar other images of an image vote for their labels. A vote has the weight exp(s / 0.07), where s is the
cosine similarity (Wu et al. 2018, section 3.4). Copies of the image do not vote, because they would only confirm its
label. The doubt is the share of votes for the most frequent other label minus the share of votes for the image's label.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.errors import DataError
from clipkit.search.curation import Neighbors
from clipkit.search.index import Index
from clipkit.search.source import CONTENT, RESERVED

NAMES = ("label", "class", "category")
"""Names of a column that is used as labels without being named by the user."""
_TEMPERATURE = 0.07
_MOST_CLASSES = 20_000
_BLOCK = 4096


@dataclass(frozen=True)
class DoubtfulLabel:
    """An image whose similar images vote for a label other than its label."""

    row: int
    label: str
    suggested: str
    """Label with the most votes."""
    share: float
    """Share of the votes for the image's label."""
    suggested_share: float
    similar_row: int
    """The most similar image that has the suggested label."""

    @property
    def doubt(self) -> float:
        """Share of votes for the suggested label minus share of votes for the image's label, in (0, 1]."""
        return self.suggested_share - self.share


def label_columns(table: pa.Table) -> list[str]:
    """Return the names of the columns that may hold labels, i.e. columns of text, integers or booleans.

    Columns with the names label, class and category come first.
    """
    types = pa.types
    found = [
        field.name
        for field in table.schema
        if field.name not in RESERVED
        and (types.is_string(field.type) or types.is_large_string(field.type) or types.is_integer(field.type)
             or types.is_boolean(field.type) or types.is_dictionary(field.type))
    ]  # fmt: skip
    return sorted(found, key=lambda name: name.lower() not in NAMES)


def check_label_column(index: Index, column: str) -> None:
    """Check that an index has a column that may hold labels.

    Raises:
        DataError: the index has no such column.
    """
    known = label_columns(index.rows)
    if column not in known:
        advice = (
            f"give one of {', '.join(known)}" if known else "run clipkit embed with data that has a column of labels"
        )
        raise DataError(f"{index.path}: has no column {column[:200]!r} that may hold labels; {advice}")


def labels_of(index: Index, column: str) -> NDArray[np.object_]:
    """Return the (N,) labels of the images as text, with None for images without a label.

    An image has no label if the value in the column is null, an empty text or -1.

    Raises:
        DataError: the index has no such column, or its values are not labels.
    """
    check_label_column(index, column)
    values = index.rows[column]
    texts = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
    labels = np.array([text if text and text != "-1" else None for text in texts.cast(pa.string()).to_pylist()], object)
    classes = len({label for label in labels if label is not None})
    if not 2 <= classes <= _MOST_CLASSES:
        raise DataError(
            f"{index.path}: column {column!r} has {classes:,} different values, but labels have 2 to "
            f"{_MOST_CLASSES:,}; give a column of labels"
        )
    return labels


def doubtful_labels(index: Index, column: str, neighbors: Neighbors) -> list[DoubtfulLabel]:
    """Return the images whose similar images vote for another label, the most doubtful first.

    Images without a label are not returned and do not vote.

    Args:
        index: the index.
        column: column with the labels.
        neighbors: the most similar images of each image, from `clipkit.search.curation.neighbors_of`.

    Raises:
        DataError: the index has no such column, or its values are not labels.
    """
    labels = labels_of(index, column)
    classes = sorted({label for label in labels if label is not None})
    number_of = {label: number for number, label in enumerate(classes)}
    numbers = np.array([number_of.get(label, -1) for label in labels], np.int64)
    contents = pc.dictionary_encode(index.rows[CONTENT].combine_chunks()).indices.to_numpy()
    found = []
    for start in range(0, len(numbers), _BLOCK):
        part = slice(start, start + _BLOCK)
        others, own = neighbors.rows[part], numbers[part, None]
        voting = (contents[others] != contents[part, None]) & (numbers[others] >= 0)
        votes = np.exp(neighbors.scores[part].astype(np.float64) / _TEMPERATURE) * voting
        votes /= np.maximum(votes.sum(axis=1, keepdims=True), 1e-300)
        shares = (votes[:, None, :] * (numbers[others][:, :, None] == numbers[others][:, None, :])).sum(axis=2)
        own_shares = (votes * (numbers[others] == own)).sum(axis=1)
        shares[~voting | (numbers[others] == own)] = -1  # (B, K) shares of the other classes, by neighbor
        best = shares.argmax(axis=1)  # the most similar neighbor with this class
        for n in np.flatnonzero((own[:, 0] >= 0) & (shares.max(axis=1) > own_shares)).tolist():
            similar, row = int(others[n, best[n]]), start + n
            suggested, share = float(shares[n, best[n]]), float(own_shares[n])
            found.append(DoubtfulLabel(row, labels[row], labels[similar], share, suggested, similar))
    return sorted(found, key=lambda entry: -entry.doubt)
