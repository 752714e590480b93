"""Search two indexes side by side, and list the queries whose results differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clipkit.errors import UserError
from clipkit.images import Stored
from clipkit.search.agreement import DEPTH, Pair
from clipkit.search.browse.asked import Part, Query
from clipkit.search.browse.jobs import Job
from clipkit.search.browse.views import Item, Listing, Views

_COMPARED = 100  # number of results of one index whose ranks in the other index are looked up


class Comparison:
    """Comparison of two indexes of the same images. Row numbers refer to the first index.

    Args:
        views: views of both indexes.
        queries: texts for the list of differences. None: captions that both indexes have.

    Raises:
        DataError: the indexes have no image in common.
    """

    def __init__(self, views: Sequence[Views], queries: Sequence[str] | None = None) -> None:
        self.views = views
        self.pair = Pair(views[0].index, views[1].index)
        self._differences = Job(lambda progress: self.pair.differences(queries, progress))

    def sides(self, query: Query, images: Mapping[str, Stored], count: int) -> dict[str, Any]:
        """Search both indexes, and give each result its rank in the other index.

        Args:
            query: the search; `query.precision` is ignored.
            images: images of the query, by name.
            count: number of results per index.

        Returns:
            `sides`: the results in each index. `depth`: number of first results that are compared, at most 10.
            `overlap` and `common`: rank-biased overlap and number of common images of these results.

        Raises:
            UserError: the query is not valid, or contains an image that the second index does not have.
        """
        like = [self.pair.row_in_other(row) for row in query.like]
        if None in like:
            row = query.like[like.index(None)]
            raise UserError(
                f"{self.views[1].index.path}: does not contain the image of row {row} of the first index; "
                "choose another image"
            )
        first = query.model_copy(update={"view": "search", "precision": None, "index": 0})
        both = (first, first.model_copy(update={"index": 1, "like": like}))
        found = [self._found(views, asked, images) for views, asked in zip(self.views, both, strict=True)]
        rows = [[item["row"] for item in items] for items in found]
        overlap, common = self.pair.agreement(*rows)
        names = [[int(self.pair.rows[n][row]) for row in rows[n]] for n in (0, 1)]
        shown = [
            [
                self._shown(number, item, name, names[1 - number])
                for item, name in zip(found[number][:count], names[number], strict=False)
            ]
            for number in (0, 1)
        ]
        return {"sides": shown, "overlap": overlap, "common": common, "depth": min(DEPTH, *map(len, rows))}

    def _found(self, views: Views, query: Query, images: Mapping[str, Stored]) -> list[Item]:
        listing = views.listing(query, images)
        assert isinstance(listing, Listing)
        return listing.items(slice(0, _COMPARED))

    def _shown(self, number: int, item: Item, name: int, others: Sequence[int]) -> Item:
        """Return a result for display, with its rank in the other index.

        If the image is in both indexes, the result has the row and the columns of the first index.

        Args:
            number: index in which the result was found, 0 or 1.
            name: row of the image in the first index; -1 if only the second index has the image.
            others: `name` of each result in the other index, by rank.
        """
        rank = others.index(name) + 1 if name >= 0 and name in others else None
        if number == 1 and name >= 0:
            taken = {key: item[key] for key in ("score", "relevance")}
            return {**self.views[0].items([name])[0], **taken, "rank": rank}
        return {**item, "index": number, "rank": rank}

    def differences(self, part: Part) -> dict[str, Any]:
        """Return part of the list of queries. Queries whose results differ most come first.

        Until the list is complete, only the completed share of the work is returned.

        Raises:
            UserError: no queries are given, and the indexes have no caption in common.
        """
        found = self._differences.result()
        if found is None:
            return {"working": self._differences.progress}
        ranked = [entry for entry in found if entry.row is not None]
        return {
            "total": len(found),
            "start": part.start,
            "items": [asdict(entry) for entry in found[part.start : part.start + part.count]],
            "captions": len(ranked),
            "among_ten": [sum((entry.ranks[n] or 999) <= DEPTH for entry in ranked) for n in (0, 1)],
            "overlap": sum(entry.overlap for entry in found) / max(len(found), 1),
        }
