"""The report of one evaluation, from its result."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.page import Page, Table, metrics_table, number, readable, render
from clipkit.report.run import example_grids

_NAMES = {
    "retrieval": "Retrieval",
    "zeroshot": "Zero-shot classification",
    "probe": "Linear probe",
    "compositional": "Near misses",
}
_HARDEST = 20


def evaluation_report(result: Mapping[str, Any]) -> str:
    """The HTML of a result: metrics with intervals and chance, and queries with their top answers."""
    data = result["data"]
    kinds = ("images", "captions", "instances", "classes")
    counts = ", ".join(f"{data[kind]:,} {kind}" for kind in kinds if kind in data)
    name = _NAMES[result["task"]]
    table = metrics_table(
        {str(result["model"]): result["metrics"]},
        f"{name} on {data['name']}",
        "In brackets the 95 % interval over pictures.",
    )
    page = Page(
        title=f"{name}: {result['model']}",
        lead=f"{data['name']}: {counts}; {result['seconds']:.0f} s",
        tables=[table, *classes_table(result.get("classes", []))],
        grids=example_grids(dict(result)),
        details={
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
        return [Table("By category", ["", "instances", *map(readable, metrics)], cells)]
    if "average_precision" in rows[0]:
        ordered = sorted(rows, key=lambda row: row["average_precision"])[:_HARDEST]
        cells = [[row["class"], f"{row['images']:,}", number("", row["average_precision"])] for row in ordered]
        return [Table(f"The {len(cells)} hardest classes", ["", "images", "average precision"], cells)]
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
    return [Table(f"The {len(cells)} hardest classes", ["", "images", "recall", "precision", "taken for"], cells)]
