"""Report of one evaluation."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.charts import bar_chart, confusion_chart, reliability_chart
from clipkit.report.page import (
    CALIBRATION_NOTE,
    INTERVAL_NOTE,
    Chart,
    Page,
    Table,
    duration,
    headlines,
    metrics_table,
    render,
    short_name,
)
from clipkit.report.run import example_grids
from clipkit.tasks import TASKS, counts_of, number, readable

_HARDEST_CLASSES = 20
_CONFUSED_PAIRS = 12
_MATRIX_CLASSES = 24
_NARROW_CLASSES = 12
"""Number of classes above which a confusion matrix uses the full width of the page."""
_PROMPTS = 20


def evaluation_report(result: Mapping[str, Any]) -> str:
    """Return the HTML of a result: metrics with intervals and chance levels, and queries with top answers."""
    data = result["data"]
    counts = counts_of(data)
    notes = [f"{counts}.", INTERVAL_NOTE, *[CALIBRATION_NOTE] * ("ece" in result["metrics"])]
    table = metrics_table({"value": result["metrics"]}, "All metrics", " ".join(notes))
    page = Page(
        title=f"{TASKS[result['task']].title}: {short_name(str(result['model']))}",
        lead=f"{short_name(data['name'])}: {counts}; evaluated in {duration(result['seconds'])}.",
        headlines=headlines(result["metrics"], TASKS[result["task"]].headlines),
        tables=[table, *prompt_choices_table(result.get("prompt_choices") or [])],
        tables_below=[*confused_pairs(result), *classes_table(result.get("classes", []))],
        charts=_charts(result),
        charts_title="Predictions",
        grids=example_grids(dict(result)),
        map=result.get("map") or [],
        details={
            "Model and data": json.dumps({"model": result["model"], "data": data}, indent=2, ensure_ascii=False),
            "Settings": json.dumps(result["settings"], indent=2, ensure_ascii=False),
            "Versions": json.dumps(result["versions"], indent=2),
        },
    )
    return render(page)


def prompt_choices_table(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return a table of the accuracy with each choice of class names and templates; [] if there are no rows.

    Each row also shows the difference from the first.
    """
    if not rows:
        return []
    cells = []
    for row in rows:
        change = "–"
        if row is not rows[0]:
            low, high = (number("acc1", row[end]).removesuffix(" %") for end in ("low", "high"))
            change = f"{number('acc1', row['difference'])} ({low} – {high})"
        cells.append(
            [
                row["names"],
                row["templates"],
                f"{row['prompts']:,}",
                f"{row['cut']:,}",
                number("acc1", row["acc1"]),
                change,
            ]
        )
    header = ["class names", "templates", "prompts", "cut", readable("acc1"), "difference (95 % interval)"]
    note = "The first row is this evaluation. cut: number of prompts longer than the model's context."
    return [Table("Choices of prompts", header, cells, note, strong=4, words=[1])]


def classes_table(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return a table of the hardest classes with their most frequent confusions; [] if there are no rows.

    For a compositional test, the table lists its categories instead.
    """
    if not rows:
        return []
    if "category" in rows[0]:
        metrics = [name for name in rows[0] if name not in ("category", "instances")]
        cells = [[row["category"], f"{row['instances']:,}", *(number(m, row[m]) for m in metrics)] for row in rows]
        return [Table("By category", ["", "instances", *map(readable, metrics)], cells, strong=2)]
    if "average_precision" in rows[0]:
        ordered = sorted(rows, key=lambda row: row["average_precision"])[:_HARDEST_CLASSES]
        cells = [[row["class"], f"{row['images']:,}", number("", row["average_precision"])] for row in ordered]
        return [Table(_classes_title(cells, rows), ["", "images", "average precision"], cells, strong=2)]
    ordered = sorted((row for row in rows if row["images"]), key=lambda row: row["recall"])[:_HARDEST_CLASSES]
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
    header = ["", "images", "recall", "precision", "confused with"]
    return [Table(_classes_title(cells, rows), header, cells, strong=2, words=[4])]


def _classes_title(shown: Sequence[object], every: Sequence[object]) -> str:
    return "Classes, hardest first" if len(shown) == len(every) else f"The {len(shown)} hardest classes"


def confused_pairs(result: Mapping[str, Any]) -> list[Table]:
    """Return a table of the most confused pairs of classes; [] if there are none."""
    counted = _confusions(result)
    if not counted:
        return []
    titles = [row["class"] for row in result["classes"]]
    images = [row["images"] for row in result["classes"]]
    cells = [
        [f"{titles[label]} → {titles[predicted]}", f"{count:,}", number("", count / images[label])]
        for (label, predicted), count in counted.most_common(_CONFUSED_PAIRS)
    ]
    return [Table("Most confused classes", ["true → predicted", "images", "share of class"], cells)]


def _confusions(result: Mapping[str, Any]) -> Counter[tuple[int, int]]:
    """Return the number of wrong predictions for each (true class, predicted class)."""
    queries = result.get("queries", {})
    if result["task"] != "zeroshot" or "predicted" not in queries:
        return Counter()
    pairs = zip(queries["label"], queries["predicted"], strict=True)
    return Counter((label, predicted) for label, predicted in pairs if label != predicted)


def _charts(result: Mapping[str, Any]) -> list[Chart]:
    queries = result.get("queries", {})
    if result["task"] != "zeroshot" or "confidence" not in queries:
        return []
    correct = [label == predicted for label, predicted in zip(queries["label"], queries["predicted"], strict=True)]
    reliability = Chart(
        "Reliability diagram",
        reliability_chart(queries["confidence"], correct),
        "Below the dotted line the model is overconfident.",
    )
    return [_confusion_matrix(result), reliability, *_prompts(result)]


def _prompts(result: Mapping[str, Any]) -> list[Chart]:
    """Return charts of the accuracy with each prompt alone, and of the accuracy lost without each prompt."""
    prompts = result.get("prompts") or []
    ensemble = result["metrics"]["acc1"]["value"]
    alone = {row["prompt"]: row["acc1"] for row in prompts}
    gains = {row["prompt"]: ensemble - row["without"] for row in prompts if "without" in row}
    charts = []
    if alone:
        title, shown = _best_and_worst("Each prompt alone", alone)
        svg = bar_chart(shown, "%", ("all prompts", ensemble))
        charts.append(Chart(title, svg, f"Top-1 accuracy in percent, over {counts_of(result['data'])}."))
    if gains:
        title, shown = _best_and_worst("Contribution of each prompt", gains)
        charts.append(Chart(title, bar_chart(shown, "points"), "Points of top-1 accuracy lost without the prompt."))
    return charts


def _best_and_worst(title: str, values: Mapping[str, float]) -> tuple[str, dict[str, float]]:
    """Sort values in descending order; return the title of the chart and the sorted values.

    If there are many, keep only the best and the worst, and extend the title.
    """
    names = sorted(values, key=lambda name: -values[name])
    if len(names) > _PROMPTS:
        title += f": best and worst of {len(names)}"
        names = [*names[: _PROMPTS // 2], *names[-_PROMPTS // 2 :]]
    return title, {name: values[name] for name in names}


def _confusion_matrix(result: Mapping[str, Any]) -> Chart:
    """Return a confusion matrix as a chart. If there are many classes, show only the most confused classes."""
    queries, titles = result["queries"], [row["class"] for row in result["classes"]]
    mistakes: Counter[int] = Counter()
    for (label, predicted), count in _confusions(result).items():
        mistakes[label] += count
        mistakes[predicted] += count
    all_shown = len(titles) <= _MATRIX_CLASSES
    classes = range(len(titles)) if all_shown else sorted(c for c, _ in mistakes.most_common(_MATRIX_CLASSES))
    index = {c: i for i, c in enumerate(classes)}
    shares = [[0.0] * len(index) for _ in index]
    for label, predicted in zip(queries["label"], queries["predicted"], strict=True):
        if label in index and predicted in index:
            shares[index[label]][index[predicted]] += 1 / result["classes"][label]["images"]
    title = "Confusion matrix" if all_shown else f"Confusion matrix of the {len(index)} most confused classes"
    note = "Percent of the images of each true class (row)."
    wide = len(index) > _NARROW_CLASSES
    return Chart(title, confusion_chart(shares, [titles[c] for c in index]), note, wide)
