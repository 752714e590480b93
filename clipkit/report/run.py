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
    tables = []
    if results["metrics"]:
        data = results["data"]
        tables.append(
            metrics_table(
                {"this run": results["metrics"]},
                f"Retrieval on {data['name']}",
                f"{data['images']} pictures, {data['captions']} captions; in brackets the 95 % interval over pictures.",
            )
        )
    page = Page(
        title=str(results["model"]),
        lead=_lead(results),
        tables=tables,
        curves=run_curves(folder, yaml.safe_load(recipe_text)),
        grids=example_grids(results),
        details={"Recipe": recipe_text, "Versions": json.dumps(results.get("versions", {}), indent=2)},
    )
    return render(page)


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
    if evaluations:
        x = [row["step"] for row in evaluations]
        names = ["image_retrieval_recall@10", "text_retrieval_recall@10", "mean_recall"]
        recalls = {readable(name): (x, [row[name] for row in evaluations]) for name in names}
        curves.append(Curve("Validation", line_chart(recalls, "step", "recall")))
    return curves


def example_grids(results: dict[str, Any]) -> list[Grid]:
    """The result's examples, by what asks."""
    note = "Evenly spaced queries, not chosen by hand. Right answers are marked ✓."
    by_text = [example for example in results["examples"] if "text" in example["query"]]
    by_image = [example for example in results["examples"] if "image" in example["query"]]
    answers = "its class" if results["task"] == "zeroshot" else "its captions"
    grids = [
        Grid("From text to pictures", by_text, note),
        Grid(f"From a picture to {answers}", by_image, note),
    ]
    return [grid for grid in grids if grid.examples]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
