"""Command `clipkit demo`: build the data from pip packages, train a model and write a report."""

import json
import time
from pathlib import Path
from typing import Any

import clipkit
from clipkit.cli.tables import print_columns
from clipkit.data import read_labeled, read_pairs
from clipkit.data.sources.emoji import EmojiData, build_emoji_data
from clipkit.errors import OutputError
from clipkit.evaluation import retrieval, zeroshot
from clipkit.files import write_whole
from clipkit.models import DualEncoder, compose, load
from clipkit.recipe import Recipe
from clipkit.report.demo import CREDIT, demo_report
from clipkit.report.page import CALIBRATION_NOTE
from clipkit.run_files import read_object
from clipkit.tasks import counts_of

# The run on shuffled names is a control, which must learn nothing: fewer epochs are enough to show this.
_SHUFFLED_SHARE = 0.4


def run_demo(out: Path) -> None:
    """Train and evaluate one model on emoji names and one on shuffled names, and write a report.

    The folders of an earlier demo in `out` are replaced.

    Raises:
        OutputError: `out` holds other files, or cannot be written to.
    """
    marker = out / "demo.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and "models" not in read_object(marker))):
        raise OutputError(f"{out}: already exists and does not contain a demo; give another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(marker, json.dumps({"models": {}}))
        data = build_emoji_data(out / "data")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror}); give another folder with --out") from None
    print(f"{data.families} emoji families, {data.held_out_families} of them held out for evaluation. {CREDIT}")

    recipe = Recipe.from_yaml(recipe_file("demo_emoji.yaml")).override(
        {"data.train": str(data.train), "output": str(out / "run")}
    )
    started = time.perf_counter()
    clipkit.train(recipe, overwrite=True)
    seconds = time.perf_counter() - started
    print("For comparison, the same training on shuffled names:")
    shuffled = recipe.override(
        {
            "data.train": str(data.shuffled),
            "output": str(out / "run_shuffled"),
            "train.epochs": max(1, round(_SHUFFLED_SHARE * recipe.train.epochs)),
        }
    )
    clipkit.train(shuffled, overwrite=True)

    results = {
        "trained": _measure(load(str(out / "run")), data),
        "shuffled names": _measure(load(str(out / "run_shuffled")), data),
        "untrained": _measure(_untrained(recipe), data),
    }
    write_whole(marker, json.dumps({"models": results, "train_seconds": seconds}, indent=2))
    report = out / "report.html"
    write_whole(report, demo_report(out))
    _print_summary(results, report, out, seconds)


def recipe_file(name: str) -> Path:
    """Return the path of an example recipe, in the installed package or in a source checkout."""
    package = Path(clipkit.__file__).parent
    installed = package / "recipes" / name
    return installed if installed.is_file() else package.parent / "recipes" / name


def _untrained(recipe: Recipe) -> DualEncoder:
    import torch

    torch.manual_seed(recipe.train.seed)
    model = compose(recipe.model)
    model.name = "untrained"
    return model


def _measure(model: DualEncoder, data: EmojiData) -> dict[str, Any]:
    # The titles of emoji groups, e.g. "Travel & Places", do not occur in the captions. The prompts of a group are
    # therefore names of its training emoji.
    prompts = json.loads(data.group_prompts.read_text(encoding="utf-8"))
    return {
        "retrieval": retrieval(model, read_pairs(str(data.held_out)), cache=False),
        "zeroshot": zeroshot(model, read_labeled(str(data.held_out_labels)), templates=prompts, cache=False),
    }


def _print_summary(results: dict[str, Any], report: Path, out: Path, seconds: float) -> None:
    for task, title in (
        ("retrieval", "Retrieval of held-out emoji by name"),
        ("zeroshot", "Classification of held-out emoji into groups"),
    ):
        counts = counts_of(results["trained"][task]["data"])
        print_columns({name: result[task]["metrics"] for name, result in results.items()}, f"\n{title}: {counts}")
    print(CALIBRATION_NOTE)
    print(f"""
Trained in {seconds:.0f} s. Report: {report}

Next steps with your own data (a CSV file with the columns image and caption):
  clipkit train {recipe_file("finetune_clip.yaml")} data.train=train.csv data.validation=dev.csv
  clipkit eval retrieval --model runs/finetune_clip --data dev.csv --report dev.html
  clipkit eval zeroshot --model {out / "run"} --data folder_of_class_folders""")
