"""The report of two models side by side, from a comparison and the results it compares."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipkit.report.curves import interval_chart
from clipkit.report.page import (
    Curve,
    Grid,
    Page,
    Table,
    difference,
    metrics_table,
    place_of,
    render,
    standing,
)
from clipkit.tasks import TASKS, readable


def comparison_report(comparison: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The HTML of a comparison: figures side by side, paired differences, and where the two disagree most.

    Args:
        comparison: what `clipkit.evaluation.compare` gives.
        first: the result that it calls the first.
        second: the other one.
    """
    data, task = comparison["data"], comparison["task"]
    cells, drawn = [], {}
    for name, found in comparison["metrics"].items():
        low, high = (difference(name, found[end]).removesuffix(" points") for end in ("low", "high"))
        cells.append([readable(name), difference(name, found["difference"]), f"{low} to {high}", f"{found['p']:.3f}"])
        if cells[-1][1].endswith("points"):
            drawn[readable(name)] = tuple(100 * found[end] for end in ("difference", "low", "high"))
    note = (
        "The interval holds 95 % of 1,000 draws of images, the same for both models; p is two-sided, 0.002 the least "
        "it can be."
    )
    columns = {letter: own["metrics"] for letter, own in zip("AB", (first, second), strict=True)}
    side_by_side = metrics_table(columns, "Side by side", "In brackets the 95 % interval over images.")
    chart = Curve("B − A in points", interval_chart(drawn, "points"), "Blue where the interval does not hold 0.")
    page = Page(
        title=f"{TASKS[task].title}: two models on {place_of(data['name'])}",
        lead=f"A is {comparison['first']}, B is {comparison['second']}.",
        tables=[replace(side_by_side, strong=None)],
        curves_title="The difference",
        curves=[chart] if drawn else [],
        tables_below=[Table("B − A", ["", "difference", "95 % interval", "p"], cells, note)],
        grids=_disagreements(comparison["disagreements"]),
    )
    return render(page)


def _disagreements(moved: Sequence[Mapping[str, Any]]) -> list[Grid]:
    grids = []
    for title, better in (("Where B is better than A", True), ("Where A is better than B", False)):
        own = [query for query in moved if _second_is_better(query) == better and query.get("image")]
        for asks, who in (("text", "captions"), ("image", "images")):
            asking = [query for query in own if query["asks"] == asks]
            if not asking:
                continue
            note = f"The {who} whose right answer moved most, and what each model puts first."
            if "first_right" in asking[0]:
                note = f"The {who} whose answer is right with one model and wrong with the other."
            grids.append(Grid(f"{title}: {who} ask", [_example(query, better) for query in asking], note))
    return grids


def _second_is_better(query: Mapping[str, Any]) -> bool:
    if "first_right" in query:
        return bool(query["second_right"] > query["first_right"])
    return bool(query["second_rank"] < query["first_rank"])


def _example(query: Mapping[str, Any], second_is_better: bool) -> dict[str, Any]:
    sides = [
        {
            "name": name,
            "standing": standing(query, whose),
            "right": query.get(f"{whose}_rank") == 1 or query.get(f"{whose}_right") == 1,
            "image": query.get(f"{whose}_image"),
            "text": query.get(f"{whose}_text"),
            "better": (whose == "second") == second_is_better,
        }
        for name, whose in (("A", "first"), ("B", "second"))
    ]
    caption = query["query"] if query["asks"] == "text" else ""
    return {"query": {"image": query["image"]}, "caption": caption, "right": query.get("right"), "sides": sides}
