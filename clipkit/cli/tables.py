"""Figures on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from clipkit.report.page import metrics_table


def print_metrics(metrics: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Metrics with interval and chance, as in the reports."""
    print_columns({"value (95 % interval)": metrics}, title)


def print_columns(columns: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> None:
    """Several results side by side, with chance."""
    shown = metrics_table(columns, title)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no edge to wrap at
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(shown.header):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)
