"""Figures on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipkit.report.page import metrics_table, standing
from clipkit.tasks import number, readable


def print_metrics(metrics: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Metrics with interval and chance, as in the reports."""
    print_columns({"value (95 % interval)": metrics}, title)


def print_columns(columns: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> None:
    """Several results side by side, with chance."""
    shown = metrics_table(columns, title)
    print_table(shown.header, shown.rows, title)


def print_comparison(comparison: Mapping[str, Any], first: str, second: str) -> None:
    """Metrics of two results with their paired difference, and the queries that moved most."""
    rows = []
    for name, found in comparison["metrics"].items():
        low, high = (number(name, found[end]).removesuffix(" %") for end in ("low", "high"))
        difference = f"{number(name, found['difference'])} ({low} – {high})"
        rows.append(
            [
                readable(name),
                number(name, found["first"]),
                number(name, found["second"]),
                difference,
                f"{found['p']:.3f}",
            ]
        )
    data = comparison["data"]
    print(f"A: {comparison['first']} ({first})\nB: {comparison['second']} ({second})")
    print_table(["", "A", "B", "B − A (95 % interval)", "p"], rows, f"{comparison['task']} on {data['name']}")
    moved = comparison["disagreements"]
    if moved:
        cells = [
            [str(query["asks"]), str(query["query"])[-80:], *(standing(query, whose) for whose in ("first", "second"))]
            for query in moved
        ]
        print_table(["asks", "query", "in A", "in B"], cells, "Where they disagree most")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """A table, its first column set to the left."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no edge to wrap at
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column, heading in enumerate(header):
        table.add_column(heading, justify="left" if column == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as they are: captions may have brackets, which rich takes for markup
    console.print(table)
