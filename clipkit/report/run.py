"""The report of a run, from the files in its folder."""

import json
from pathlib import Path
from typing import Any

import yaml

from clipkit.report.curves import line_chart
from clipkit.report.page import Curve, Grid, Page, metrics_table, readable, render


def run_report(folder: str | Path) -> str:
    """The HTML of a run folder: loss, metrics with chance, queries with their top answers, the recipe."""
    folder = Path(folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    recipe_text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    data = results["data"]
    kinds = {"retrieval_": ("Retrieval on", data), "view_": ("Views of", data)}
    kinds[""] = ("Labelled pictures:", data.get("labelled", data))
    tables = []
    for kind, (title, measured) in kinds.items():
        own = {name: figure for name, figure in results["metrics"].items() if _kind(name) == kind}
        if own:
            counts = [f"{measured[what]} {what}" for what in ("images", "captions", "classes") if measured.get(what)]
            note = f"{', '.join(counts).replace('images', 'pictures')}; in brackets the 95 % interval over pictures."
            tables.append(metrics_table({"this run": own}, f"{title} {measured['name']}", note))
    page = Page(
        title=str(results["model"]),
        lead=_lead(results),
        tables=tables,
        curves=run_curves(folder, yaml.safe_load(recipe_text)),
        grids=example_grids(results),
        map=results.get("map") or [],
        details={"Recipe": recipe_text, "Versions": json.dumps(results.get("versions", {}), indent=2)},
    )
    return render(page)


# What is drawn together, and what it is called.
_DRAWN = (
    ("image_retrieval_recall@10", "text_retrieval_recall@10", "mean_recall"),
    ("image_view_recall@1", "image_view_recall@10", "text_view_recall@1", "text_view_recall@10"),
    ("image_alignment", "image_uniformity", "text_alignment", "text_uniformity"),
    ("knn_acc1", "lp_acc1"),
)
_TITLES = {
    "image_retrieval_recall@10": "Validation: captions",
    "image_view_recall@1": "Validation: views",
    "image_alignment": "Alignment and uniformity: the lower, the better",
    "knn_acc1": "Labelled pictures",
}


def _kind(name: str) -> str:
    """Of a metric: the part of its name that says what was measured."""
    if name == "mean_recall" or "_retrieval_" in name:
        return "retrieval_"
    return "view_" if any(part in name for part in ("_view_", "alignment", "uniformity")) else ""


def _lead(results: dict[str, Any]) -> str:
    best = results["settings"].get("best")
    took = f"{results['settings']['steps']} steps in {results['seconds']:.0f} s"
    if best is None:
        return f"{took}; there were no validation pairs, so the last weights are kept"
    return f"{took}; the weights after step {best['step']} had the best {readable(best['metric'])} and are kept"


def run_curves(folder: Path, recipe: dict[str, Any]) -> list[Curve]:
    """Loss and validation recalls over the steps."""
    steps = _rows(folder / "metrics.jsonl")
    level = json.loads((folder / "results.json").read_text(encoding="utf-8"))["settings"].get("loss_at_chance")
    chance = None if level is None else ("at equal similarities", level)
    x = [row["step"] for row in steps]
    loss = {"loss": (x, [row["loss"] for row in steps])}
    curves = [Curve("Training loss", line_chart(loss, "step", "loss", chance))]
    evaluations = _rows(folder / "evaluations.jsonl")
    x = [row["step"] for row in evaluations]
    for names in _DRAWN:
        here = [name for name in names if evaluations and name in evaluations[0]]
        if here:
            drawn = {readable(name): (x, [row[name] for row in evaluations]) for name in here}
            label = "on the sphere" if "alignment" in names[0] else "share"
            curves.append(Curve(_TITLES[names[0]], line_chart(drawn, "step", label)))
    return curves


def example_grids(results: dict[str, Any]) -> list[Grid]:
    """The result's examples, by what asks."""
    note = "Evenly spaced queries, not chosen by hand. Right answers are marked ✓."
    near = [example for example in results["examples"] if example.get("neighbours")]
    asked = [example for example in results["examples"] if not example.get("neighbours")]
    by_text = [example for example in asked if "text" in example["query"]]
    by_image = [example for example in asked if "image" in example["query"]]
    answers = "its class" if results["task"] == "zeroshot" else "its captions"
    grids = [
        Grid("From text to pictures", by_text, note),
        Grid(f"From a picture to {answers}", by_image, note),
        Grid(
            "Nearest neighbours", near, "Evenly spaced, not chosen by hand; beside each the five most similar others."
        ),
    ]
    return [grid for grid in grids if grid.examples]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
