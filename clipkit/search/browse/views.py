"""Lists that the page shows: results of searches, all images, near duplicates, outliers, doubtful captions, labels."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.errors import UserError
from clipkit.images import Stored
from clipkit.search.browse.asked import Query
from clipkit.search.browse.jobs import Job
from clipkit.search.curation import doubtful_captions, neighbors_of
from clipkit.search.index import Index
from clipkit.search.labels import check_label_column, doubtful_labels
from clipkit.search.map import Map, map_of
from clipkit.search.source import CAPTIONS, IMAGE, RESERVED
from clipkit.search.where import rows_where

DEEPEST = 1000
"""Largest number of results of a search."""
_DOUBTFUL = 10_000
_KEPT = 8
_TEXT, _ITEMS = 2000, 50  # characters of a text and items of a list that are shown
_EXACT = 2**53  # integers up to which JavaScript is exact

Item = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """List on the page: the number of items, and a function that returns some of the items."""

    total: int
    items: Callable[[slice], list[Item]]


class Views:
    """Lists of images and the 2-D map of an index, as the page shows them.

    The last eight lists are kept in memory, so that scrolling needs no new search.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._searching = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Listing] = OrderedDict()
        self._neighbors = Job(lambda progress: neighbors_of(index, progress))
        self._captions = Job(lambda progress: doubtful_captions(index, _DOUBTFUL, progress))
        self._map = Job(lambda progress: map_of(index))

    def listing(self, query: Query, images: Mapping[str, Stored]) -> Listing | float:
        """Return a list, or the completed share of the work (0 to 1) while the list is computed.

        Args:
            query: description of the list.
            images: images of the query, by name.

        Raises:
            UserError: the query is not valid.
        """
        key = query.model_dump_json()
        # One search at a time; other views do not wait for the first search, which loads the model.
        with self._searching if query.view == "search" else nullcontext():
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            made: Listing | float = getattr(self, f"_{query.view}_view")(query, images)
            with self._lock:
                if isinstance(made, Listing):
                    self._kept[key] = made
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return made

    def _search_view(self, query: Query, images: Mapping[str, Stored]) -> Listing:
        missing = [name for name in query.images if name not in images]
        if missing:
            raise UserError("the image of this search is no longer in memory; drop the image on the page again")
        hits = self.index.search(
            query.words,
            images=[images[name] for name in query.images],
            minus=query.minus,
            like=query.like,
            where=query.where or None,
            k=DEEPEST,
            precision=query.precision,
        )

        def items(part: slice) -> list[Item]:
            shown = hits[part]
            numbers = [{"score": hit.score, "relevance": hit.relevance} for hit in shown]
            return self.items([hit.row for hit in shown], numbers)

        return Listing(len(hits), items)

    def _all_view(self, query: Query, images: Mapping[str, Stored]) -> Listing:
        mask = self._mask(query.where)
        rows = np.arange(len(self.index)) if mask is None else np.flatnonzero(mask)
        return Listing(len(rows), lambda part: self.items(rows[part].tolist()))

    def _duplicates_view(self, query: Query, images: Mapping[str, Stored]) -> Listing | float:
        mask, neighbors = self._mask(query.where), self._neighbors.result()
        if neighbors is None:
            return self._neighbors.progress
        pairs = neighbors.near_duplicates(query.at_least)
        if mask is not None:
            pairs = [pair for pair in pairs if mask[pair[0]] and mask[pair[1]]]

        def items(part: slice) -> list[Item]:
            shown = pairs[part]
            firsts = self.items([one for one, _, _ in shown])
            numbers = [{"score": score, "other": first} for first, (_, _, score) in zip(firsts, shown, strict=True)]
            return self.items([other for _, other, _ in shown], numbers)

        return Listing(len(pairs), items)

    def _outliers_view(self, query: Query, images: Mapping[str, Stored]) -> Listing | float:
        mask, neighbors = self._mask(query.where), self._neighbors.result()
        if neighbors is None:
            return self._neighbors.progress
        ordered = [entry for entry in neighbors.outliers() if mask is None or mask[entry[0]]]

        def items(part: slice) -> list[Item]:
            return self.items([row for row, _ in ordered[part]], [{"score": score} for _, score in ordered[part]])

        return Listing(len(ordered), items)

    def _captions_view(self, query: Query, images: Mapping[str, Stored]) -> Listing | float:
        if not self.index.texts:
            raise UserError("the index has no captions; run clipkit embed with data that has captions")
        mask, doubtful = self._mask(query.where), self._captions.result()
        if doubtful is None:
            return self._captions.progress
        listed = [entry for entry in doubtful if mask is None or mask[entry.row]]

        def items(part: slice) -> list[Item]:
            shown = listed[part]
            better = self.items([entry.better_row for entry in shown])
            made = self.items([entry.row for entry in shown])
            for item, entry, other in zip(made, shown, better, strict=True):
                number = self.index.rows[CAPTIONS][entry.row].as_py().index(entry.caption)
                item |= {"caption": number, "captions": [entry.caption[:_TEXT]], "score": entry.score, "fit": entry.fit}
                if entry.better_row != entry.row:
                    item |= {"other": other, "better": entry.better_score}
            return made

        return Listing(len(listed), items)

    def _labels_view(self, query: Query, images: Mapping[str, Stored]) -> Listing | float:
        check_label_column(self.index, query.column)
        mask, neighbors = self._mask(query.where), self._neighbors.result()
        if neighbors is None:
            return self._neighbors.progress
        doubtful = doubtful_labels(self.index, query.column, neighbors)
        listed = [entry for entry in doubtful if mask is None or mask[entry.row]][:_DOUBTFUL]

        def items(part: slice) -> list[Item]:
            shown = listed[part]
            similar = self.items([entry.similar_row for entry in shown])
            numbers = [
                {
                    "label": entry.label,
                    "share": entry.share,
                    "suggested": entry.suggested,
                    "suggested_share": entry.suggested_share,
                    "other": other,
                }
                for entry, other in zip(shown, similar, strict=True)
            ]
            return self.items([entry.row for entry in shown], numbers)

        return Listing(len(listed), items)

    def _rows_view(self, query: Query, images: Mapping[str, Stored]) -> Listing:
        mask = self._mask(query.where)
        rows = [row for row in map(self.index.row_of, query.rows) if mask is None or mask[row]]
        return Listing(len(rows), lambda part: self.items(rows[part]))

    def map(self, where: str) -> tuple[Map, NDArray[np.bool_]] | None:
        """Return the map of the index, and a mask of the images on the map that pass the filter `where`.

        The result is None while the map is computed.

        Raises:
            UserError: the filter is not valid, or the map cannot be made.
        """
        mask, made = self._mask(where), self._map.result()
        if made is None:
            return None
        return made, np.ones(len(made.rows), bool) if mask is None else mask[made.rows]

    def _mask(self, where: str) -> NDArray[np.bool_] | None:
        return rows_where(self.index.rows, where) if where.strip() else None

    def items(self, rows: Sequence[int], numbers: Sequence[Item] = ()) -> list[Item]:
        """Return one dict per row for the page, with row, image, captions and columns.

        Args:
            numbers: entries to add to the dict of each row, e.g. its score.
        """
        taken = self.index.rows.take(pa.array(rows, pa.int64())).to_pylist()
        items = []
        for n, (row, values) in enumerate(zip(rows, taken, strict=True)):
            columns = {name: _plain(value) for name, value in values.items() if name not in RESERVED}
            item = {"row": row, "image": values[IMAGE], "captions": _plain(values[CAPTIONS] or []), "columns": columns}
            items.append(item | (numbers[n] if numbers else {}))
        return items


def _plain(value: Any) -> Any:
    """Convert a value of a column to a JSON value, and shorten it for display."""
    match value:
        case None | bool():
            return value
        case int():
            return value if abs(value) < _EXACT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case list():
            return [_plain(item) for item in value[:_ITEMS]]
    return str(value)[:_TEXT]
