"""Reports of a suite: tables, Markdown and an HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.findings import FEW, percent
from clipkit.report.page import INTERVAL_NOTE, Page, Table, in_markdown, markdown, render, with_interval
from clipkit.tasks import named_data, number, readable


def suite_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a suite. The first table has one row per dataset and one column per model.

    If available, further tables show robustness and a comparison with published values.
    """
    evaluated = {row["model"] for row in result["rows"]}
    models = [model for model in result["models"] if model in evaluated]
    row_of = {(row["dataset"], row["model"]): row for row in result["rows"]}
    # Title, metric and chance are the same in all rows of a dataset.
    datasets = {row["dataset"]: row for row in result["rows"]}
    rows = []
    for name, dataset in datasets.items():
        metric = dataset["metric"]
        cells = [with_interval(metric, row_of.get((name, model))) for model in models]
        rows.append([_titled(dataset), readable(metric), *cells, number(metric, dataset["chance"])])
    if result.get("mean"):
        means = [number("acc1", result["mean"].get(model)) for model in models]
        count = len(datasets) + len(result["unreached"])
        rows.append([f"mean of {count}", "", *means, ""])
    header = ["", "metric", *models, "chance"]
    note = f"{INTERVAL_NOTE} {_cut_note(result['rows'])}".rstrip()
    tables = [
        Table(result["title"] or result["suite"], header, rows, note, strong=None, words=[1]),
        *_published_table(result.get("published", {}), models, row_of, datasets, _means(result)),
    ]
    if result.get("robustness"):
        tables += _robustness_tables(result, datasets)
    return tables


def _cut_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence about captions that exceed the context length of a model; "" if they are few."""
    cut = [
        f"{row['title']}, {percent(row['captions_cut'])} ({row['model']})"
        for row in rows
        if (row.get("captions_cut") or 0) >= FEW
    ]
    return f"Captions longer than the context length are cut off: {'; '.join(cut)}." if cut else ""


def _published_table(
    published: Mapping[str, Sequence[Mapping[str, Any]]],
    models: Sequence[str],
    row_of: Mapping[tuple[str, str], Mapping[str, Any]],
    datasets: Mapping[str, Mapping[str, Any]],
    mean: Mapping[str, float],
) -> list[Table]:
    """Return a table of measured values beside published values of the same metric; [] if none are published.

    Args:
        published: dataset -> its published values.
        models: evaluated models.
        row_of: (dataset, model) -> result of the model on the dataset.
        datasets: dataset -> one of its results, for the title and the metric.
        mean: model -> mean over the datasets; if empty, the table has no row of means.
    """
    entries = [
        (name, entry)
        for name, dataset in datasets.items()
        for entry in published.get(name, [])
        if entry["metric"] == dataset["metric"]
    ]
    if not entries:
        return []
    published_value = {(name, entry["model"]): entry["value"] for name, entry in entries}
    others = list(dict.fromkeys(model for _, model in published_value))
    rows = []
    for name in dict.fromkeys(name for name, _ in entries):
        values = [row_of[name, model]["value"] if (name, model) in row_of else None for model in models]
        values += [published_value.get((name, model)) for model in others]
        metric = datasets[name]["metric"]
        rows.append([_titled(datasets[name]), readable(metric), *(number(metric, value) for value in values)])
    if mean:
        of_others = [[published_value.get((name, model)) for name in datasets] for model in others]
        cells = [mean.get(model) for model in models] + [_complete_mean(values) for values in of_others]
        rows.append([f"mean of {len(datasets)}", "", *(number("acc1", value) for value in cells)])
    header = ["", "metric", *models, *(model.removeprefix("open_clip:") for model in others)]
    by_source: dict[str, list[str]] = {}
    for _, entry in entries:
        by_source.setdefault(entry["source"], []).append(entry["model"])
    sources = [f"{', '.join(dict.fromkeys(theirs))}: as published in {source}" for source, theirs in by_source.items()]
    note = f"{'; '.join(sources)}."
    return [Table("Comparison with published results", header, rows, note, strong=None, words=[1])]


def _means(result: Mapping[str, Any]) -> dict[str, float]:
    """Return model -> mean over all datasets, without models that lack a result on a dataset."""
    return {model: value for model, value in (result.get("mean") or {}).items() if value is not None}


def _complete_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of values; None if a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _robustness_tables(result: Mapping[str, Any], datasets: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return the robustness tables. The first has one row per model and shifted dataset, e.g. ImageNet-V2.

    If a dataset has several shifted versions, a second table contains the means over these versions.
    """
    title_of = {name: dataset["title"] for name, dataset in datasets.items()}
    rows = [
        [
            _titled(datasets[row["dataset"]]), title_of[row["version_of"]], row["model"], number("", row["original"]),
            number("", row["value"]), number("", row["relative_drop"]), _signed(row["effective_robustness"]),
        ]
        for row in result["robustness"]
    ]  # fmt: skip
    header = ["", "version of", "model", "original", "this version", "relative drop", "robustness"]
    note = (
        "Relative drop: share of the accuracy on the original dataset that is lost. Robustness: effective "
        "robustness, i.e. points of accuracy above the value that is predicted from the baseline models; a "
        "baseline model itself has none."
    )
    means = [
        [
            title_of[row["version_of"]], row["model"], str(row["versions"]), number("", row["relative_drop"]),
            _signed(row["effective_robustness"]),
        ]
        for row in result["robustness_means"]
        if row["versions"] > 1
    ]  # fmt: skip
    tables = [Table("Robustness", header, rows, note, strong=5, words=[1, 2])]
    if means:
        header = ["", "model", "versions", "mean relative drop", "mean robustness"]
        tables.append(Table("Mean robustness over versions", header, means, strong=3, words=[1]))
    return tables


def suite_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of a suite in Markdown, for a README."""
    parts = []
    for table in suite_tables(result):
        parts.append(f"### {table.title}\n\n{markdown(table)}\n\n{table.note}".rstrip())
    for title, key in (("Unavailable", "unreached"), ("Failed", "failed")):
        parts += [f"{title}: {in_markdown(name)}: {in_markdown(why)}" for name, why in result[key].items()]
    return "\n\n".join(parts) + "\n"


def suite_report(result: Mapping[str, Any]) -> str:
    """Return the HTML of a suite."""
    problems = [
        {"severity": severity, "step": None, "message": f"{name} {what}", "advice": why}
        for kind, severity, what in (("unreached", "note", "is unavailable"), ("failed", "error", "failed"))
        for name, why in result[kind].items()
    ]
    datasets, models = (len({row[key] for row in result["rows"]}) for key in ("dataset", "model"))
    page = Page(
        title=result["title"] or result["suite"],
        lead=f"{datasets} dataset{'s' * (datasets != 1)}, {models} model{'s' * (models != 1)}",
        findings=problems or None,
        tables=suite_tables(result),
        details={"Versions": "\n".join(f"{name} {version}" for name, version in result["versions"].items())},
    )
    return render(page)


def _titled(dataset: Mapping[str, Any]) -> str:
    """Return the title of a dataset, with the numbers of its images and captions."""
    return named_data({**dataset, "name": dataset["title"]})


def _signed(difference: float | None) -> str:
    return "–" if difference is None else f"{100 * difference:+.1f}"
