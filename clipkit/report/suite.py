"""What a suite found, as a table and as a page."""

from collections.abc import Mapping
from typing import Any

from clipkit.report.page import Page, Table, number, readable, render


def suite_tables(result: Mapping[str, Any]) -> list[Table]:
    """Data sets by models, and robustness where there are versions of one."""
    measured = {row["model"] for row in result["rows"]}
    models = [own for own in result["models"] if own in measured]
    names = list(dict.fromkeys(row["dataset"] for row in result["rows"]))
    value = {(row["dataset"], row["model"]): row for row in result["rows"]}
    metric = {row["dataset"]: row["metric"] for row in result["rows"]}
    known = [
        (name, own)
        for name in names
        for own in result.get("published", {}).get(name, [])
        if own["metric"] == metric[name]  # others say nothing beside the measured ones
    ]
    theirs = {(name, own["model"]): number(own["metric"], own["value"]) for name, own in known}
    others = list(dict.fromkeys(model for _, model in theirs))
    rows = []
    for name in names:
        first = next(row for row in result["rows"] if row["dataset"] == name)
        cells = [_cell(value.get((name, model)), metric[name]) for model in models]
        rows.append(
            [
                first["title"], readable(metric[name]), *cells, number(metric[name], first["chance"]),
                *(theirs.get((name, model), "–") for model in others),
            ]
        )  # fmt: skip
    note = "In brackets the 95 % interval over pictures."
    if others:
        sources = ", ".join(dict.fromkeys(own["source"] for _, own in known))
        note += f" Published figures are those of {sources}."
    tables = [
        Table(
            result["title"] or result["suite"],
            ["", "figure", *models, "chance", *(f"{model}, published" for model in others)],
            rows,
            note,
            strong=None,
            words=[1],
        )
    ]
    if result.get("robustness"):
        tables += _robustness_tables(result, {row["dataset"]: row["title"] for row in result["rows"]})
    return tables


def _robustness_tables(result: Mapping[str, Any], title_of: Mapping[str, str]) -> list[Table]:
    """A row a version and model; and the means, where a data set has several versions."""
    rows = [
        [
            title_of[own["dataset"]], title_of[own["version_of"]], own["model"], number("", own["original"]),
            number("", own["value"]), number("", own["relative_drop"]), _signed(own["effective_robustness"]),
        ]
        for own in result["robustness"]
    ]  # fmt: skip
    header = ["", "of", "model", "original", "here", "relative drop", "effective robustness (points)"]
    note = (
        "Relative drop: the share of the original figure that is lost. Effective robustness: how far the figure lies "
        "above what the baseline leads to expect; the baseline itself has none."
    )
    means = [
        [
            title_of[own["version_of"]], own["model"], str(own["versions"]), number("", own["relative_drop"]),
            _signed(own["effective_robustness"]),
        ]
        for own in result["robustness_means"]
        if own["versions"] > 1
    ]  # fmt: skip
    tables = [Table("Robustness", header, rows, note, strong=5, words=[1, 2])]
    if means:
        header = ["", "model", "versions", "mean relative drop", "mean effective robustness (points)"]
        tables.append(Table("Robustness, over the versions of each", header, means, strong=3, words=[1]))
    return tables


def suite_markdown(result: Mapping[str, Any]) -> str:
    """The tables for a README."""
    parts = []
    for table in suite_tables(result):
        lines = [
            f"### {table.title}",
            "",
            "| " + " | ".join(table.header) + " |",
            "| " + " | ".join("---" for _ in table.header) + " |",
            *("| " + " | ".join(row) + " |" for row in table.rows),
            "",
            table.note,
        ]
        parts.append("\n".join(lines).rstrip())
    parts += [f"Not reached: {name}: {why}" for name, why in result["unreached"].items()]
    parts += [f"Failed: {name}: {why}" for name, why in result["failed"].items()]
    return "\n\n".join(parts) + "\n"


def suite_report(result: Mapping[str, Any]) -> str:
    """The HTML of a suite."""
    problems = [
        {"level": "note", "step": None, "message": f"{name} was not reached", "advice": why}
        for name, why in result["unreached"].items()
    ] + [
        {"level": "error", "step": None, "message": f"{name} failed", "advice": why}
        for name, why in result["failed"].items()
    ]
    datasets, models = (len({row[what] for row in result["rows"]}) for what in ("dataset", "model"))
    page = Page(
        title=result["title"] or result["suite"],
        lead=f"{datasets} data sets, {models} models",
        findings=problems or None,
        tables=suite_tables(result),
        details={"Versions": "\n".join(f"{name} {version}" for name, version in result["versions"].items())},
    )
    return render(page)


def _signed(difference: float | None) -> str:
    return "–" if difference is None else f"{100 * difference:+.1f}"


def _cell(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["low"] is None:
        return number(metric, row["value"])
    low, high = (number(metric, row[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{number(metric, row['value'])} ({low} – {high})"
