"""What a suite found, as a table and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.page import Page, Table, number, readable, render


def suite_tables(result: Mapping[str, Any]) -> list[Table]:
    """Data sets by models, and robustness where there are versions of one."""
    measured = {row["model"] for row in result["rows"]}
    models = [own for own in result["models"] if own in measured]
    value = {(row["dataset"], row["model"]): row for row in result["rows"]}
    one_of = {row["dataset"]: row for row in result["rows"]}  # a row of each: title, metric and chance are its own
    rows = []
    for name, one in one_of.items():
        cells = [_cell(value.get((name, model)), one["metric"]) for model in models]
        rows.append([one["title"], readable(one["metric"]), *cells, number(one["metric"], one["chance"])])
    tables = [
        Table(
            result["title"] or result["suite"],
            ["", "figure", *models, "chance"],
            rows,
            "In brackets the 95 % interval over images.",
            strong=None,
            words=[1],
        ),
        *_published(result.get("published", {}), models, value, one_of),
    ]
    if result.get("robustness"):
        tables += _robustness_tables(result, {name: one["title"] for name, one in one_of.items()})
    return tables


def _published(
    published: Mapping[str, Sequence[Mapping[str, Any]]],
    models: Sequence[str],
    value: Mapping[tuple[str, str], Mapping[str, Any]],
    one_of: Mapping[str, Mapping[str, Any]],
) -> list[Table]:
    """What others published of the same figures, beside the measured ones."""
    known = [
        (name, own) for name, one in one_of.items() for own in published.get(name, []) if own["metric"] == one["metric"]
    ]
    if not known:
        return []
    theirs = {(name, own["model"]): own["value"] for name, own in known}
    others = list(dict.fromkeys(model for _, model in theirs))
    rows = []
    for name in dict.fromkeys(name for name, _ in known):
        figures = [value[name, own]["value"] if (name, own) in value else None for own in models]
        figures += [theirs.get((name, own)) for own in others]
        metric = one_of[name]["metric"]
        rows.append([one_of[name]["title"], readable(metric), *(number(metric, own) for own in figures)])
    header = ["", "figure", *models, *(own.removeprefix("open_clip:") for own in others)]
    sources = ", ".join(dict.fromkeys(own["source"] for _, own in known))
    note = f"{', '.join(others)}: as published in {sources}."
    return [Table("Beside published figures", header, rows, note, strong=None, words=[1])]


def _robustness_tables(result: Mapping[str, Any], title_of: Mapping[str, str]) -> list[Table]:
    """A row a version and model; and the means, where a data set has several versions."""
    rows = [
        [
            title_of[own["dataset"]], title_of[own["version_of"]], own["model"], number("", own["original"]),
            number("", own["value"]), number("", own["relative_drop"]), _signed(own["effective_robustness"]),
        ]
        for own in result["robustness"]
    ]  # fmt: skip
    header = ["", "of", "model", "original", "here", "relative drop", "robustness"]
    note = (
        "Relative drop: the share of the original figure that is lost. Robustness: effective robustness, by how many "
        "points the figure is above what the baseline leads to expect; the baseline itself has none."
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
        header = ["", "model", "versions", "mean relative drop", "mean robustness"]
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
        {"severity": "note", "step": None, "message": f"{name} was not reached", "advice": why}
        for name, why in result["unreached"].items()
    ] + [
        {"severity": "error", "step": None, "message": f"{name} failed", "advice": why}
        for name, why in result["failed"].items()
    ]
    datasets, models = (len({row[what] for row in result["rows"]}) for what in ("dataset", "model"))
    page = Page(
        title=result["title"] or result["suite"],
        lead=f"{datasets} data set{'s' * (datasets != 1)}, {models} model{'s' * (models != 1)}",
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
