"""Report of the demo: the trained model next to an untrained model and a model trained on shuffled names."""

import json
from pathlib import Path

from clipkit.report.page import INTERVAL_NOTE, Page, metrics_table, render
from clipkit.report.run import example_grids, run_charts
from clipkit.run_files import RunFiles

CREDIT = "Images: Twemoji, © Twitter, Inc and other contributors, CC-BY 4.0. Names: Unicode CLDR."


def demo_report(folder: Path) -> str:
    """Return the HTML report of the demo in `folder`, from its `demo.json` and its run."""
    demo = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    run = RunFiles(folder / "run")
    retrieval = {name: results["retrieval"]["metrics"] for name, results in demo["models"].items()}
    zeroshot = {name: results["zeroshot"]["metrics"] for name, results in demo["models"].items()}
    trained = demo["models"]["trained"]
    data, classes = trained["retrieval"]["data"], trained["zeroshot"]["data"]["classes"]
    recipe = run.recipe.read_text(encoding="utf-8")
    held_out = f"{data['images']} held-out emoji, from families that no model saw in training"
    page = Page(
        title="clipkit demo: emoji and their names",
        lead=(
            f"A dual encoder trained from scratch in {demo['train_seconds']:.0f} s, evaluated on {held_out}. For "
            "comparison: the same model untrained, and trained for fewer epochs on shuffled names, i.e. on the same "
            "images and words without their pairing."
        ),
        tables=[
            metrics_table(retrieval, "Retrieval", INTERVAL_NOTE),
            metrics_table(
                zeroshot,
                f"Zero-shot classification into {classes} emoji groups",
                "The prompts of a group are the names of its training emoji.",
            ),
        ],
        charts=run_charts(run, json.loads(run.results.read_text(encoding="utf-8"))),
        grids=[*example_grids(trained["retrieval"]), *example_grids(trained["zeroshot"])],
        details={"Recipe": recipe},
        credit=CREDIT,
    )
    return render(page)
