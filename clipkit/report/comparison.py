"""The report of two models side by side, from a comparison and the results it compares."""

from collections.abc import Mapping
from typing import Any

from clipkit.report.page import Grid, Page, Table, metrics_table, number, readable, render


def comparison_report(comparison: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The HTML of a comparison: figures side by side, paired differences, and where the two disagree most.

    Args:
        comparison: what `clipkit.evaluation.compare` gives.
        first: the result that it calls the first.
        second: the other one.
    """
    names = {"A": str(comparison["first"]), "B": str(comparison["second"])}
    data = comparison["data"]
    cells = []
    for name, found in comparison["metrics"].items():
        low, high = (number(name, found[end]).removesuffix(" %") for end in ("low", "high"))
        cells.append([readable(name), f"{number(name, found['difference'])} ({low} – {high})", f"{found['p']:.3f}"])
    note = "In brackets the 95 % interval; both are resampled with the same draws of pictures, p is two-sided."
    columns = {letter: own["metrics"] for letter, own in zip("AB", (first, second), strict=True)}
    page = Page(
        title=f"{comparison['task']}: two models on {data['name']}",
        lead=f"A is {names['A']}, B is {names['B']}.",
        tables=[
            metrics_table(columns, "Side by side", "In brackets the 95 % interval over pictures."),
            Table("B − A", ["", "difference", "p"], cells, note),
        ],
        grids=_disagreements(comparison["disagreements"]),
    )
    return render(page)


def _disagreements(moved: list[Mapping[str, Any]]) -> list[Grid]:
    grids = []
    for title, better in (("Where B is better than A", True), ("Where A is better than B", False)):
        own = [
            query for query in moved if (query["second_rank"] < query["first_rank"]) == better and query.get("image")
        ]
        examples = [
            {
                "query": {"image": query["image"]},
                "caption": query["query"] if query["asks"] == "text" else "",
                "answers": [
                    {"text": f"A: place {query['first_rank']:,}", "right": not better},
                    {"text": f"B: place {query['second_rank']:,}", "right": better},
                ],
            }
            for query in own
        ]
        if examples:
            note = "The queries whose right answer moved most. With a caption it is the caption that asks."
            grids.append(Grid(title, examples, note))
    return grids
