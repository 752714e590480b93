"""Report of two models side by side, from a comparison and the two compared results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipkit.report.charts import interval_chart
from clipkit.report.page import (
    INTERVAL_NOTE,
    Chart,
    Grid,
    Page,
    Table,
    difference,
    metrics_table,
    render,
    short_name,
    standing,
)
from clipkit.tasks import TASKS, counts_of, number, readable, shown_metrics


def comparison_report(comparison: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return the HTML of a comparison: both models' metrics, paired differences, and the largest disagreements.

    `comparison` is the result of `clipkit.evaluation.compare` for the evaluation results `first` and `second`.
    """
    data, task = comparison["data"], comparison["task"]
    rows, in_points = [], {}
    for name in shown_metrics(comparison["metrics"]):
        change = comparison["metrics"][name]
        low, high = (difference(name, change[end]).removesuffix(" points") for end in ("low", "high"))
        rows.append([readable(name), difference(name, change["difference"]), f"{low} to {high}", f"{change['p']:.3f}"])
        if rows[-1][1].endswith("points"):
            in_points[readable(name)] = tuple(100 * change[end] for end in ("difference", "low", "high"))
    note = (
        f"{counts_of(data)}. Paired bootstrap: 1,000 draws of images, the same for both models. p is two-sided; "
        "0.002 is the smallest possible value."
    )
    columns = {"A": first["metrics"], "B": second["metrics"]}
    side_by_side = metrics_table(columns, "Metrics", f"{counts_of(data)}. {INTERVAL_NOTE}")
    note_of_chart = "95 % confidence intervals; blue: the interval excludes 0."
    chart = Chart("B − A in points", interval_chart(in_points, "points"), note_of_chart)
    page = Page(
        title=f"{TASKS[task].title}: two models on {short_name(data['name'])}",
        lead=f"A: {comparison['first']}; B: {comparison['second']}. {counts_of(data)}.",
        tables=[replace(side_by_side, strong=None)],
        charts_title="Difference",
        charts=[chart] if in_points else [],
        tables_below=[Table("B − A", ["", "difference", "95 % interval", "p"], rows, note)],
        grids=_disagreements(comparison["disagreements"]),
    )
    return render(page)


def suite_comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Return a table of two models with a row per dataset of a suite, and a last row for the mean."""
    rows = []
    for one in comparison["datasets"]:
        metric = one["metric"]
        low, high = (difference(metric, one[end]).removesuffix(" points") for end in ("low", "high"))
        values = [number(metric, one[model]) for model in ("first", "second")]
        p = [f"{one[kind]:.2g}" if one[kind] < 0.001 else f"{one[kind]:.3f}" for kind in ("p", "p_holm")]
        rows.append(
            [one["title"], readable(metric), *values, difference(metric, one["difference"]), f"{low} to {high}", *p]
        )
    mean = comparison["mean"]
    low, high = (difference("acc1", mean[end]).removesuffix(" points") for end in ("low", "high"))
    of_mean = [number("acc1", mean[model]) for model in ("first", "second")]
    rows.append(["mean", "", *of_mean, difference("acc1", mean["difference"]), f"{low} to {high}", "", ""])
    note = (
        "Paired bootstrap: 1,000 draws of images, the same for both models; p from the normal distribution with the "
        "standard error of the draws. p (Holm) below 0.05: the difference is significant among all datasets."
    )
    header = ["", "metric", "A", "B", "B − A", "95 % interval", "p", "p (Holm)"]
    return Table(comparison["suite"], header, rows, note, strong=4, words=[1])


def suite_comparison_report(comparison: Mapping[str, Any]) -> str:
    """Return the HTML of a comparison of two models over a suite."""
    page = Page(
        title=f"{comparison['suite']}: two models",
        lead=f"A: {comparison['first']}; B: {comparison['second']}. {comparison['sentence']}",
        tables=[suite_comparison_table(comparison)],
    )
    return render(page)


def _disagreements(queries: Sequence[Mapping[str, Any]]) -> list[Grid]:
    grids = []
    for title, second_wins in (("B better than A", True), ("A better than B", False)):
        won = [query for query in queries if _second_is_better(query) == second_wins and query.get("image")]
        for kind, plural in (("text", "captions"), ("image", "images")):
            examples = [query for query in won if query["asks"] == kind]
            if not examples:
                continue
            note = (
                f"The {plural} for which the rank of the correct answer changed most, with each model's first answer "
                "and the rank of the correct answer."
            )
            if "first_right" in examples[0]:
                note = f"The {plural} for which only one of the two models gives the correct answer."
            grids.append(Grid(f"{title}: {kind} queries", [_example(query, second_wins) for query in examples], note))
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
