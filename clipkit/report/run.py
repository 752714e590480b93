"""The report of a run, from the files in its folder."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from clipkit.report.curves import line_chart
from clipkit.report.page import (
    Curve,
    Grid,
    Headline,
    Page,
    Sheet,
    Table,
    difference,
    duration,
    headlines,
    metrics_table,
    place_of,
    render,
)
from clipkit.run_files import RunFiles, read_rows
from clipkit.tasks import number, readable


def run_report(folder: str | Path) -> str:
    """The HTML of a run folder: loss, metrics with chance, queries with their top answers, the recipe."""
    run = RunFiles(folder)
    results = json.loads(run.results.read_text(encoding="utf-8"))
    data = results["data"]
    kinds = {"retrieval_": ("Retrieval on", data), "view_": ("Views of", data)}
    kinds[""] = ("Labelled images:", data.get("labelled", data))
    tables = []
    for kind, (title, measured) in kinds.items():
        own = {name: figure for name, figure in results["metrics"].items() if _kind(name) == kind}
        if own:
            counts = [f"{measured[what]:,} {what}" for what in ("images", "captions", "classes") if measured.get(what)]
            note = f"{', '.join(counts).replace('images', 'images')}; in brackets the 95 % interval over images."
            tables.append(metrics_table({"this run": own}, f"{title} {place_of(measured['name'])}", note))
    page = Page(
        title=f"Run {place_of(str(results['model']))}",
        lead=_lead(results),
        headlines=[*headlines(results["metrics"], _HEADLINES), *_kept(results)][:_MOST],
        findings=results.get("findings"),
        tables=[*tables, *_retention(results)],
        curves=run_curves(run, results),
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
_MOST = 4

# What is drawn together, and what it is called.
_DRAWN = (
    ("image_retrieval_recall@10", "text_retrieval_recall@10", "mean_recall"),
    ("image_view_recall@1", "image_view_recall@10", "text_view_recall@1", "text_view_recall@10"),
    ("image_alignment", "image_uniformity", "text_alignment", "text_uniformity"),
    ("knn_acc1", "lp_acc1"),
)
_SINGLE = {"scale": "Scale", "bias": "Bias", "grad_norm": "Gradient norm", "lr": "Learning rate"}
_TITLES = {
    "image_retrieval_recall@10": "Validation: captions",
    "image_view_recall@1": "Validation: views",
    "image_alignment": "Alignment and uniformity: the lower, the better",
    "knn_acc1": "Labelled images",
}


def _kind(name: str) -> str:
    """Of a metric: the part of its name that says what was measured."""
    if name == "mean_recall" or "_retrieval_" in name:
        return "retrieval_"
    return "view_" if any(part in name for part in ("_view_", "alignment", "uniformity")) else ""


def _lead(results: dict[str, Any]) -> str:
    best = results["settings"].get("best")
    took = f"{results['settings']['steps']:,} steps in {duration(results['seconds'])}"
    if best is None:
        return f"{took}; there were no validation pairs, so the last weights are kept."
    return f"{took}; the weights after step {best['step']:,} had the best {readable(best['metric'])} and are kept."


def run_curves(run: RunFiles, results: dict[str, Any]) -> list[Curve]:
    """What was logged at each step and evaluation: loss, accuracies, cosines, scale, figures, speed."""
    steps = read_rows(run.metrics)
    settings = results["settings"]
    level = settings.get("loss_at_chance")
    chance = None if level is None else ("at equal similarities", level)
    x = [row["step"] for row in steps]
    loss = {"loss": (x, [row["loss"] for row in steps])}
    curves = [Curve("Training loss", line_chart(loss, "step", "loss", chance))]
    curves += _of_evaluations(read_rows(run.evaluations), settings)
    curves += _of_batches(steps)
    if settings.get("interpolation"):
        curves.append(_interpolation(settings))
    return [*curves, *_throughput(read_rows(run.speed))]


def _throughput(speeds: list[dict[str, Any]]) -> list[Curve]:
    if len(speeds) < 2:
        return []
    pairs = [row["pairs_per_second"] for row in speeds]
    waited = sum(row["data_wait_seconds"] for row in speeds)
    total = waited + sum(row["step_seconds"] for row in speeds)
    memory = max(row.get("memory_bytes") or 0 for row in speeds)
    note = f"Median {median(pairs):,.0f} pairs a second; {100 * waited / max(total, 1e-9):.1f} % of it waiting for data"
    note += f"; at most {memory / 1e9:.1f} GB of memory." if memory else "."
    drawn = {"pairs a second": ([row["step"] for row in speeds], pairs)}
    return [Curve("Throughput", line_chart(drawn, "step", "pairs a second"), note)]


def _of_evaluations(evaluations: list[dict[str, Any]], settings: dict[str, Any]) -> list[Curve]:
    curves = []
    x = [row["step"] for row in evaluations]
    for names in _DRAWN:
        here = [name for name in names if evaluations and name in evaluations[0]]
        if here:
            drawn = {readable(name): (x, [row[name] for row in evaluations]) for name in here}
            label = "on the sphere" if "alignment" in names[0] else "share"
            curves.append(Curve(_TITLES[names[0]], line_chart(drawn, "step", label)))
    retention = settings.get("retention")
    if retention and evaluations and retention["metric"] in evaluations[0]:
        name = retention["metric"]
        kept = {readable(name): ([0, *x], [retention["start"], *(row[name] for row in evaluations)])}
        best = settings.get("best")
        if best and best["metric"] in evaluations[0]:
            kept[readable(best["metric"])] = (x, [row[best["metric"]] for row in evaluations])
        curves.append(Curve("Gain against retention", line_chart(kept, "step", "share")))
    return curves


def _of_batches(steps: list[dict[str, Any]]) -> list[Curve]:
    """Accuracy, cosines and scale in the batches, where they were logged."""
    if not steps:
        return []
    x = [row["step"] for row in steps]
    curves = []
    for title, ending, label in (
        ("In the batch: finds its own", "_accuracy", "share"),
        ("In the batch: cosines", "_cosine", "mean cosine"),
    ):
        names = [name for name in steps[0] if name.endswith(ending) and all(name in row for row in steps)]
        if names:
            drawn = {name.removesuffix(ending).replace("_", " "): (x, [row[name] for row in steps]) for name in names}
            curves.append(Curve(title, line_chart(drawn, "step", label)))
    for name, title in _SINGLE.items():
        if all(isinstance(row.get(name), float | int) for row in steps):
            drawn = {name: (x, [row[name] for row in steps])}
            curves.append(Curve(title, line_chart(drawn, "step", title.lower())))
    return curves


def _interpolation(settings: dict[str, Any]) -> Curve:
    rows = settings["interpolation"]
    x = [row["alpha"] for row in rows]
    names = {"target": "target", "retention": "retained"}
    drawn = {title: (x, [row[name] for row in rows]) for name, title in names.items() if name in rows[0]}
    title = f"Weights between start and end (kept: alpha {settings['alpha']:g})"
    return Curve(title, line_chart(drawn, "alpha", "share"))


def _retention(results: dict[str, Any]) -> list[Table]:
    """Gain against what was retained."""
    settings = results["settings"]
    kept = settings.get("retention")
    if not kept:
        return []
    name = kept["metric"]
    change = difference(name, kept["chosen"] - kept["start"])
    cells = [readable(name), number(name, kept["start"]), number(name, kept["chosen"]), change]
    note = f"On {kept['name']}: before the first step, and of the weights that are kept."
    return [Table("What is left of what it knew", ["", "start", "kept", "change"], [cells], note, strong=3)]


def _kept(results: dict[str, Any]) -> list[Headline]:
    kept = results["settings"].get("retention")
    if not kept:
        return []
    name = kept["metric"]
    change = difference(name, kept["chosen"] - kept["start"])
    return [Headline(readable(name), number(name, kept["chosen"]), [f"{number(name, kept['start'])} before", change])]


def _sheets(results: dict[str, Any]) -> list[Sheet]:
    image = results.get("augmented")
    note = "On the left of each row the image, beside it what the image tower may see of it."
    return [Sheet("Augmented samples", image, note)] if image else []


def example_grids(results: dict[str, Any]) -> list[Grid]:
    """The result's examples, by what asks."""
    note = "Evenly spaced queries, not chosen by hand. Right answers are marked ✓."
    examples = results["examples"]
    near = [example for example in examples if example.get("neighbours")]
    asked = [example for example in examples if not (example.get("neighbours") or example.get("kind"))]
    kinds = {kind: [own for own in examples if own.get("kind") == kind] for kind in ("best", "worst", "mistake")}
    by_text = [example for example in asked if "text" in example["query"]]
    by_image = [example for example in asked if "image" in example["query"]]
    answers = "its class" if results["task"] == "zeroshot" else "its captions"
    grids = [
        Grid("From text to images", by_text, note),
        Grid(f"From an image to {answers}", by_image, note),
        Grid("Found surest", kinds["best"], "The captions whose own image comes first with the highest similarity."),
        Grid("Found last", kinds["worst"], "The captions whose own image comes last; it stands at the end, marked ✓."),
        Grid(
            "Surest mistakes",
            kinds["mistake"],
            "The wrong answers, marked ✗, with the highest confidence; the right class is marked ✓.",
            small=True,
        ),
        Grid(
            "Nearest neighbours", near, "Evenly spaced, not chosen by hand; beside each the five most similar others."
        ),
    ]
    return [grid for grid in grids if grid.examples]
