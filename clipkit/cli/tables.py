"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipkit.errors import printable
from clipkit.tasks import named_data, number, readable, shortened, shown_metrics


def print_metrics(result: Mapping[str, Any]) -> None:
    """Print a result: the model, the data, and the metrics with confidence intervals and chance levels."""
    print_columns({"value (95 % interval)": result["metrics"]}, f"{result['model']} on {named_data(result['data'])}")


def print_prompt_choices(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the zero-shot accuracy for each combination of class names and prompts."""
    from clipkit.report.evaluation import prompt_choices_table

    for table in prompt_choices_table(rows):
        print_table(table.header, table.rows, f"\n{table.title}")
        print(table.note)


def print_columns(columns: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> None:
    """Print the metrics of several results side by side, with the chance level of each metric."""
    from clipkit.report.page import metrics_table

    shown = metrics_table(columns, title)
    print_table(shown.header, shown.rows, title)


def print_comparison(comparison: Mapping[str, Any], first: str, second: str) -> None:
    """Print the metrics of two results with their paired differences, and the queries that changed most."""
    rows = []
    for name in shown_metrics(comparison["metrics"]):
        change = comparison["metrics"][name]
        low, high = (number(name, change[end]).removesuffix(" %") for end in ("low", "high"))
        models = (number(name, change[model]) for model in ("first", "second"))
        difference = f"{number(name, change['difference'])} ({low} – {high})"
        rows.append([readable(name), *models, difference, f"{change['p']:.3f}"])
    data = comparison["data"]
    print(f"A: {comparison['first']} ({first})\nB: {comparison['second']} ({second})")
    print_table(["", "A", "B", "B − A (95 % interval)", "p"], rows, f"{comparison['task']} on {named_data(data)}")
    changed = comparison["disagreements"]
    if changed:
        from clipkit.report.page import standing

        cells = [
            [str(query["asks"]), _query(query), *(standing(query, model) for model in ("first", "second"))]
            for query in changed
        ]
        print_table(["kind", "query", "A", "B"], cells, "Queries that changed most")


def _query(query: Mapping[str, Any]) -> str:
    """Return a short label of a query: its caption, or the end of its image path."""
    return shortened(str(query["query"]), 80, keep_end=query["asks"] == "image")


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, texts: Sequence[str] = ()
) -> None:
    """Print a table; the first column and the columns in `texts` are left-aligned, the others right-aligned."""
    table = Table(title=None if title is None else Text(title), title_justify="left", box=None, pad_edge=False)
    for column, heading in enumerate(header):
        table.add_column(heading, justify="left" if column == 0 or heading in texts else "right", overflow="fold")
    for row in rows:
        # Text, because rich would read brackets in captions as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    open_console().print(table)


def open_console() -> Console:
    """Return a console as wide as the terminal, or of 120 columns if the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=120)
