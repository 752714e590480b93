"""The report of one evaluation, from its result."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.curves import bar_chart, confusion_chart, reliability_chart
from clipkit.report.page import (
    Curve,
    Page,
    Table,
    duration,
    headlines,
    metrics_table,
    place_of,
    render,
)
from clipkit.report.run import example_grids
from clipkit.tasks import TASKS, number, readable

_HARDEST = 20
_PAIRS = 12
_MATRIX = 24
_NARROW = 12
_SHOWN = 20


def evaluation_report(result: Mapping[str, Any]) -> str:
    """The HTML of a result: metrics with intervals and chance, and queries with their top answers."""
    data = result["data"]
    kinds = ("images", "captions", "instances", "classes")
    counts = ", ".join(f"{data[kind]:,} {kind}" for kind in kinds if kind in data)
    name, measured = TASKS[result["task"]].title, place_of(data["name"])
    table = metrics_table({"value": result["metrics"]}, "All figures", "In brackets the 95 % interval over images.")
    page = Page(
        title=f"{name}: {place_of(str(result['model']))}",
        lead=f"On {measured}: {counts}; it took {duration(result['seconds'])}.",
        headlines=headlines(result["metrics"], TASKS[result["task"]].headlines),
        tables=[table],
        tables_below=[*hardest_pairs(result), *classes_table(result.get("classes", []))],
        curves=_charts(result),
        curves_title="How it classifies",
        grids=example_grids(dict(result)),
        map=result.get("map") or [],
        details={
            "Model and data": json.dumps({"model": result["model"], "data": data}, indent=2, ensure_ascii=False),
            "Settings": json.dumps(result["settings"], indent=2, ensure_ascii=False),
            "Versions": json.dumps(result["versions"], indent=2),
        },
    )
    return render(page)


def classes_table(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The hardest classes with what they are taken for; or the categories of near misses."""
    if not rows:
        return []
    if "category" in rows[0]:
        metrics = [name for name in rows[0] if name not in ("category", "instances")]
        cells = [[row["category"], f"{row['instances']:,}", *(number(m, row[m]) for m in metrics)] for row in rows]
        return [Table("By category", ["", "instances", *map(readable, metrics)], cells, strong=2)]
    if "average_precision" in rows[0]:
        ordered = sorted(rows, key=lambda row: row["average_precision"])[:_HARDEST]
        cells = [[row["class"], f"{row['images']:,}", number("", row["average_precision"])] for row in ordered]
        return [Table(f"The {len(cells)} hardest classes", ["", "images", "average precision"], cells, strong=2)]
    ordered = sorted((row for row in rows if row["images"]), key=lambda row: row["recall"])[:_HARDEST]
    cells = [
        [
            row["class"],
            f"{row['images']:,}",
            number("", row["recall"]),
            number("", row["precision"]),
            ", ".join(f"{other} ({count})" for other, count in row["taken_for"]) or "–",
        ]
        for row in ordered
    ]
    title = "The classes, the hardest first" if len(cells) == len(rows) else f"The {len(cells)} hardest classes"
    return [Table(title, ["", "images", "recall", "precision", "taken for"], cells, strong=2, words=[4])]


def hardest_pairs(result: Mapping[str, Any]) -> list[Table]:
    """Which classes are taken for which most often."""
    counted = _confused(result)
    if not counted:
        return []
    titles = [row["class"] for row in result["classes"]]
    images = [row["images"] for row in result["classes"]]
    cells = [
        [f"{titles[label]} → {titles[taken]}", f"{count:,}", number("", count / images[label])]
        for (label, taken), count in counted.most_common(_PAIRS)
    ]
    return [Table("The hardest pairs", ["is → taken for", "images", "of the class"], cells)]


def _confused(result: Mapping[str, Any]) -> Counter[tuple[int, int]]:
    """Wrong answers by (class, what it was taken for)."""
    queries = result.get("queries", {})
    if result["task"] != "zeroshot" or "predicted" not in queries:
        return Counter()
    pairs = zip(queries["label"], queries["predicted"], strict=True)
    return Counter((label, taken) for label, taken in pairs if label != taken)


def _charts(result: Mapping[str, Any]) -> list[Curve]:
    queries = result.get("queries", {})
    if result["task"] != "zeroshot" or "confidence" not in queries:
        return []
    right = [label == taken for label, taken in zip(queries["label"], queries["predicted"], strict=True)]
    curves = [
        _confusion(result),
        Curve(
            "Confidence and truth",
            reliability_chart(queries["confidence"], right),
            "Below the dotted line it is surer than it should be.",
        ),
    ]
    return [*curves, *_prompts(result)]


def _prompts(result: Mapping[str, Any]) -> list[Curve]:
    """What each prompt can do by itself, and what would be lost without it."""
    prompts = result.get("prompts") or []
    everything = result["metrics"]["acc1"]["value"]
    curves = []
    for title, note, name, rows in (
        ("Each prompt alone", "Top-1 accuracy in percent.", "acc1", {own["prompt"]: own["acc1"] for own in prompts}),
        (
            "What each prompt adds",
            "Points of top-1 accuracy that would be lost without it.",
            "without",
            {own["prompt"]: everything - own["without"] for own in prompts if "without" in own},
        ),
    ):
        if not rows:
            continue
        ordered = dict(sorted(rows.items(), key=lambda own: -own[1]))
        if len(ordered) > _SHOWN:
            title += f": the best and the worst of {len(ordered)}"
            kept = [*list(ordered)[: _SHOWN // 2], *list(ordered)[-_SHOWN // 2 :]]
            ordered = {prompt: ordered[prompt] for prompt in kept}
        level = ("all together", everything) if name == "acc1" else None
        curves.append(Curve(title, bar_chart(ordered, "%" if level else "points", level), note))
    return curves


def _confusion(result: Mapping[str, Any]) -> Curve:
    """The classes that are confused most, or all of them where they are few."""
    queries, titles = result["queries"], [row["class"] for row in result["classes"]]
    weight: Counter[int] = Counter()
    for (label, taken), count in _confused(result).items():
        weight[label] += count
        weight[taken] += count
    everything = len(titles) <= _MATRIX
    chosen = list(range(len(titles))) if everything else sorted(own for own, _ in weight.most_common(_MATRIX))
    place = {own: index for index, own in enumerate(chosen)}
    shares = [[0.0] * len(chosen) for _ in chosen]
    for label, taken in zip(queries["label"], queries["predicted"], strict=True):
        if label in place and taken in place:
            shares[place[label]][place[taken]] += 1 / result["classes"][label]["images"]
    title = "Confusion" if everything else f"Confusion among the {len(chosen)} classes that are mixed up most"
    note = "In a row, in percent of its images, what they were taken for."
    return Curve(title, confusion_chart(shares, [titles[own] for own in chosen]), note, wide=len(chosen) > _NARROW)
