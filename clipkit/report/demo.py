"""Report of the demo: the trained model beside an untrained model and a model trained on shuffled names."""

import json
from pathlib import Path

from clipkit.report.page import CALIBRATION_NOTE, INTERVAL_NOTE, Page, metrics_table, render
from clipkit.report.run import example_grids, run_charts
from clipkit.run_files import RunFiles
from clipkit.tasks import counts_of

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
    searches = example_grids(trained["retrieval"])
    held_out = f"{data['images']} held-out emoji, from families that no model saw in training"
    page = Page(
        title="clipkit demo: emoji and their names",
        lead=(
            f"A dual encoder trained from scratch in {demo['train_seconds']:.0f} s, evaluated on {held_out}. For "
            "comparison: the same model untrained, and trained for fewer epochs on shuffled names, i.e. on the same "
            "images and words without their pairing."
        ),
        tables=[
            metrics_table(retrieval, "Retrieval", f"{counts_of(data)}. {INTERVAL_NOTE}"),
            metrics_table(
                zeroshot,
                f"Zero-shot classification into {classes} emoji groups",
                f"{counts_of(trained['zeroshot']['data'])}. The prompts of a group are the names of its training "
                f"emoji. {CALIBRATION_NOTE}",
            ),
        ],
        charts=run_charts(run, json.loads(run.results.read_text(encoding="utf-8"))),
        grids_above=searches[:1],
        grids=[*searches[1:], *example_grids(trained["zeroshot"])],
        details={"Recipe": recipe},
        credit=CREDIT,
    )
    return render(page)
