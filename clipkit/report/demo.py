"""The report of the demo: what was learned, beside what an untrained and a wrongly taught model know."""

import json
from pathlib import Path

from clipkit.report.page import Page, metrics_table, render
from clipkit.report.run import example_grids, run_curves
from clipkit.run_files import RunFiles

CREDIT = "Images: Twemoji, © Twitter, Inc and other contributors, CC-BY 4.0. Names: Unicode CLDR."


def demo_report(folder: Path) -> str:
    """The HTML of the demo's folder, from `demo.json` and the files of its run."""
    demo = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    run = RunFiles(folder / "run")
    retrieval = {name: results["retrieval"]["metrics"] for name, results in demo["models"].items()}
    zeroshot = {name: results["zeroshot"]["metrics"] for name, results in demo["models"].items()}
    trained = demo["models"]["trained"]
    data, classes = trained["retrieval"]["data"], trained["zeroshot"]["data"]["classes"]
    recipe = run.recipe.read_text(encoding="utf-8")
    held_out = f"{data['images']} held-out emoji, of families that no model saw in training"
    page = Page(
        title="clipkit demo: emoji and their names",
        lead=(
            f"A dual encoder trained from scratch for {demo['train_seconds']:.0f} s, measured on {held_out}. Beside it "
            "the same model untrained, and trained (for fewer epochs) on shuffled names: it saw the same images and "
            "words, but not which belong together."
        ),
        tables=[
            metrics_table(retrieval, "Retrieval", "In brackets the 95 % interval over images."),
            metrics_table(
                zeroshot,
                f"Zero-shot classification into the {classes} emoji groups",
                "The prompts of a group are the names of its training emoji.",
            ),
        ],
        curves=run_curves(run, json.loads(run.results.read_text(encoding="utf-8"))),
        grids=[*example_grids(trained["retrieval"]), *example_grids(trained["zeroshot"])],
        details={"Recipe": recipe},
        credit=CREDIT,
    )
    return render(page)
