"""Report of a training run, from the files in its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from clipkit.report.charts import line_chart
from clipkit.report.closed_form import closed_form_tables
from clipkit.report.page import (
    INTERVAL_NOTE,
    Chart,
    Grid,
    Headline,
    Page,
    Sheet,
    Table,
    difference,
    duration,
    headlines,
    metrics_table,
    render,
    short_name,
)
from clipkit.run_files import IN_METRICS, IN_SPEED, RunFiles, read_rows
from clipkit.tasks import counts_of, number, readable


def run_report(folder: str | Path) -> str:
    """Return the HTML report of a run: metrics beside their chance levels, curves, queries with top answers, recipe."""
    run = RunFiles(folder)
    results = json.loads(run.results.read_text(encoding="utf-8"))
    retained, retention = _retention(results)
    start = closed_form_tables(results)
    page = Page(
        title=f"Run {short_name(str(results['model']))}",
        lead=_lead(results),
        headlines=[*headlines(results["metrics"], _HEADLINES), *retained][:_HEADLINE_COUNT],
        findings=results.get("findings"),
        tables=[*_metric_tables(results), *start, *retention],
        charts=run_charts(run, results),
        sheets=_sheets(results),
        grids=example_grids(results),
        map=results.get("map") or [],
        details={
            "Recipe": run.recipe.read_text(encoding="utf-8"),
            "Versions": json.dumps(results.get("versions", {}), indent=2),
        },
    )
    return render(page)


_HEADLINES = (
    "mean_recall", "image_retrieval_recall@1", "text_retrieval_recall@1", "image_view_recall@1", "text_view_recall@1",
    "lp_acc1", "knn_acc1",
)  # fmt: skip
_HEADLINE_COUNT = 4

# Metrics that share a chart; its title is found in _TITLES by the first metric.
_CHARTED = (
    ("image_retrieval_recall@10", "text_retrieval_recall@10", "mean_recall"),
    ("image_view_recall@1", "image_view_recall@10", "text_view_recall@1", "text_view_recall@10"),
    ("image_alignment", "image_uniformity", "text_alignment", "text_uniformity"),
    ("knn_acc1", "lp_acc1"),
)
_TITLES = {
    "image_retrieval_recall@10": "Validation: retrieval",
    "image_view_recall@1": "Validation: views",
    "image_alignment": "Alignment and uniformity (lower is better)",
    "knn_acc1": "Labeled images",
}
_SERIES = {
    "image_accuracy": "image → text",
    "text_accuracy": "text → image",
    "positive_cosine": "positive pairs",
    "negative_cosine": "negative pairs",
    "image_cosine": "between images",
    "text_cosine": "between texts",
}
# Values of one step, each with a separate chart.
_PER_STEP = {"scale": "Logit scale", "bias": "Logit bias", "grad_norm": "Gradient norm", "lr": "Learning rate"}


_SAMPLED = "Evenly spaced queries, not selected by hand. Numbers are cosine similarities; ✓ marks correct answers."
# Title and note of each kind of examples, except for evenly spaced queries.
_EXAMPLES = {
    "chosen": ("Chosen queries", "The images that match each query best, each with its map below."),
    "confident": (
        "Most confident mistakes",
        "Captions for which a wrong image is first, by the largest margin, followed by the correct image (✓). Below "
        "each image are its map and its similarity.",
    ),
    "best": ("Best text queries", "Captions whose correct image is at rank 1 with the highest similarity."),
    "worst": (
        "Worst text queries",
        "Captions whose correct image has the worst rank; the correct image is shown at the end, marked ✓.",
    ),
    "mistake": (
        "Most confident mistakes",
        "Wrong predictions (✗) with the highest confidence, and the correct class (✓).",
    ),
    "neighbors": (
        "Nearest neighbors",
        "Evenly spaced items, not selected by hand, each with the five most similar items.",
    ),
}


_MAPS = (
    "The maps show which parts of the image match each text: the brightest parts match best. Brightness is "
    "scaled separately for each map; clipkit explain measures how faithful a map is."
)


def _metric_tables(results: dict[str, Any]) -> list[Table]:
    """Return one table for each kind of data that was evaluated."""
    data = results["data"]
    tables = []
    for kind, title, measured in (
        ("retrieval", "Retrieval on", data),
        ("views", "Views of", data),
        ("labels", "Labeled images of", data.get("labelled", data)),
    ):
        metrics = {name: figure for name, figure in results["metrics"].items() if _kind(name) == kind}
        if metrics:
            own = {key: value for key, value in measured.items() if not isinstance(value, Mapping)}
            note = f"{counts_of(own)}. {INTERVAL_NOTE}"
            tables.append(metrics_table({"this run": metrics}, f"{title} {short_name(measured['name'])}", note))
    return tables


def _kind(metric: str) -> str:
    """Return the kind of data for a metric: `retrieval` (captions), `views` or `labels`."""
    if metric == "mean_recall" or "_retrieval_" in metric:
        return "retrieval"
    return "views" if any(part in metric for part in ("_view_", "alignment", "uniformity")) else "labels"


def _lead(results: dict[str, Any]) -> str:
    best = results["settings"].get("best")
    took = f"{results['settings']['steps']:,} steps in {duration(results['seconds'])}"
    if best is None:
        return f"{took}. The last weights are kept, because the run has no validation data."
    return (
        f"{took}. The weights of step {best['step']:,} are kept, because they have the best {readable(best['metric'])}."
    )


def run_charts(run: RunFiles, results: dict[str, Any]) -> list[Chart]:
    """Return charts of the logs of a run: loss, validation metrics, batch statistics, logit scale, throughput."""
    steps, settings = read_rows(run.metrics, IN_METRICS), results["settings"]
    level = settings.get("loss_at_chance")
    chance = None if level is None else ("chance", level)
    charts = [_curves("Training loss", {"loss": "loss"}, steps, "loss", reference=chance)]
    counts = counts_of(results["data"])
    charts += _evaluation_charts(read_rows(run.evaluations), settings, counts and f"On {counts}.")
    charts += _batch_charts(steps)
    if settings.get("interpolation"):
        charts.append(_interpolation_chart(settings))
    return [*charts, *_throughput_chart(read_rows(run.speed, IN_SPEED))]


def _curves(
    title: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    y_label: str,
    *,
    x: str = "step",
    note: str = "",
    reference: tuple[str, float] | None = None,
) -> Chart:
    """Return a line chart of logged values, with a dotted line for the optional `reference` (its name and y value).

    `columns` maps each logged column to the label of its line, and `x` is the column of the x values.
    """
    positions = [row[x] for row in rows]
    series = {label: (positions, [row[name] for row in rows]) for name, label in columns.items()}
    return Chart(title, line_chart(series, x, y_label, reference), note)


def _throughput_chart(speeds: list[dict[str, Any]]) -> list[Chart]:
    if len(speeds) < 2:
        return []
    pairs = [row["pairs_per_second"] for row in speeds]
    waited = sum(row["data_wait_seconds"] for row in speeds)
    total = waited + sum(row["step_seconds"] for row in speeds)
    memory = max(row.get("memory_bytes") or 0 for row in speeds)
    note = f"Median {median(pairs):,.0f} pairs per second; {100 * waited / max(total, 1e-9):.1f} % waiting for data"
    note += f"; peak memory {memory / 1e9:.1f} GB." if memory else "."
    columns = {"pairs_per_second": "pairs per second"}
    return [_curves("Throughput", columns, speeds, "pairs per second", note=note)]


def _evaluation_charts(evaluations: list[dict[str, Any]], settings: dict[str, Any], note: str) -> list[Chart]:
    if not evaluations:
        return []
    charts = []
    for names in _CHARTED:
        if columns := {name: readable(name) for name in names if all(name in row for row in evaluations)}:
            label = "value" if "alignment" in names[0] else "share"
            charts.append(_curves(_TITLES[names[0]], columns, evaluations, label, note=note))
    retention = settings.get("retention")
    if retention and all(retention["metric"] in row for row in evaluations):
        name = retention["metric"]
        x = [row["step"] for row in evaluations]
        series = {readable(name): ([0, *x], [retention["start"], *(row[name] for row in evaluations)])}
        best = settings.get("best")
        if best and all(best["metric"] in row for row in evaluations):
            series[readable(best["metric"])] = (x, [row[best["metric"]] for row in evaluations])
        charts.append(Chart("Target metric and retention", line_chart(series, "step", "share")))
    return charts


def _batch_charts(steps: list[dict[str, Any]]) -> list[Chart]:
    """Return charts of the logged batch statistics: accuracy within the batch, mean cosines, logit scale."""
    if not steps:
        return []
    charts = []
    for title, ending, label in (
        ("In-batch accuracy", "_accuracy", "share"),
        ("In-batch cosine similarity", "_cosine", "mean cosine"),
    ):
        names = [name for name in steps[0] if name.endswith(ending) and all(name in row for row in steps)]
        if names:
            columns = {name: _SERIES.get(name, name.removesuffix(ending).replace("_", " ")) for name in names}
            charts.append(_curves(title, columns, steps, label))
    for name, title in _PER_STEP.items():
        if all(isinstance(row.get(name), float | int) for row in steps):
            charts.append(_curves(title, {name: name}, steps, title.lower()))
    return charts


def _interpolation_chart(settings: dict[str, Any]) -> Chart:
    rows, alpha, most = settings["interpolation"], settings["alpha"], settings.get("max_forgetting")
    names = {"target": "target metric", "retention": "retention"}
    columns = {name: label for name, label in names.items() if name in rows[0]}
    kept = next(row for row in rows if row["alpha"] == alpha)
    figures = ", ".join(f"{label} {kept[name]:.4f}" for name, label in columns.items())
    rule = settings.get("interpolation_rule")
    note = f"Alpha 0: the weights before training; 1: after it. Kept: alpha {alpha:g}, {figures}"
    least = None if most is None else ("least retention", rows[0]["retention"] - most)
    title = f"Interpolation between the weights before and after training (kept: alpha {alpha:g})"
    note += f"; it has {rule}." if rule else "."
    return _curves(title, columns, rows, "share", x="alpha", note=note, reference=least)


def _retention(results: dict[str, Any]) -> tuple[list[Headline], list[Table]]:
    """Return the retention metric before and after training, as a headline and a table; empty if not measured."""
    retention = results["settings"].get("retention")
    if not retention:
        return [], []
    name, start, chosen = (retention[key] for key in ("metric", "start", "chosen"))
    before, after, change = number(name, start), number(name, chosen), difference(name, chosen - start)
    note = f"Measured on {retention['name']}, before the first step and with the kept weights."
    cells = [readable(name), before, after, change]
    table = Table("Retention", ["", "before", "after", "change"], [cells], note, strong=3)
    return [Headline(readable(name), after, [f"{before} before training", change])], [table]


def _sheets(results: dict[str, Any]) -> list[Sheet]:
    image = results.get("augmented")
    note = "Each row: the image on the left, then augmented versions as the image tower sees them."
    return [Sheet("Augmented samples", image, note)] if image else []


def example_grids(results: dict[str, Any]) -> list[Grid]:
    """Group the examples of a result into grids by kind of query."""
    by_kind: dict[str, list[Any]] = {}
    for example in results["examples"]:
        kind = "neighbors" if example.get("neighbours") else example.get("kind") or next(iter(example["query"]))
        by_kind.setdefault(kind, []).append(example)
    answers = "classes" if results["task"] == "zeroshot" else "texts"
    sampled = {"text": ("Text → images", _SAMPLED), "image": (f"Image → {answers}", _SAMPLED)}
    kinds = {"chosen": _EXAMPLES["chosen"], **sampled, **_EXAMPLES}
    mapped = {kind for kind in by_kind if any("map" in answer for one in by_kind[kind] for answer in one["answers"])}
    return [
        Grid(
            title,
            by_kind[kind],
            f"{note} {_MAPS}" if kind in mapped else note,
            small=kind == "mistake" and kind not in mapped,
        )
        for kind, (title, note) in kinds.items()
        if kind in by_kind
    ]
