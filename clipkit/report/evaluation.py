"""The report of one evaluation, from its result."""

import json
from collections.abc import Mapping
from typing import Any

from clipkit.report.page import Page, metrics_table, render
from clipkit.report.run import example_grids


def evaluation_report(result: Mapping[str, Any]) -> str:
    """The HTML of a result: metrics with intervals and chance, and queries with their top answers."""
    data = result["data"]
    counts = ", ".join(f"{data[kind]} {kind}" for kind in ("images", "captions", "classes") if kind in data)
    name = {"retrieval": "Retrieval", "zeroshot": "Zero-shot classification"}[result["task"]]
    table = metrics_table(
        {str(result["model"]): result["metrics"]},
        f"{name} on {data['name']}",
        "In brackets the 95 % interval over pictures.",
    )
    page = Page(
        title=f"{name}: {result['model']}",
        lead=f"{data['name']}: {counts}; {result['seconds']:.0f} s",
        tables=[table],
        grids=example_grids(dict(result)),
        details={
            "Settings": json.dumps(result["settings"], indent=2, ensure_ascii=False),
            "Versions": json.dumps(result["versions"], indent=2),
        },
    )
    return render(page)
