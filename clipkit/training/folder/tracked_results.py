"""Results of a run for experiment trackers: the metrics, the report and a sheet of augmented training images."""

import base64
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipkit.evaluation import Result
from clipkit.image_formats import open_content
from clipkit.images import DATA_URI
from clipkit.run_files import RunFiles

_SHEET = "augmented_images"


def send_results(tracker: Any, results: Mapping[str, Any], folder: Path) -> None:
    """Send the results of a finished run to a tracker of Accelerate.

    TensorBoard and trackio get a table of the metrics. W&B gets the report. MLflow gets results.json, the report and
    the recipe as artifacts. All four also get the sheet of augmented training images. Other trackers get nothing.

    Args:
        results: content of results.json.
    """
    files, step = RunFiles(folder), results["settings"]["steps"]
    table, sheet = markdown_table(Result(results)), _sheet(results)
    native, library = tracker.tracker, tracker.name
    if library == "tensorboard":
        native.add_text("results", f"{table}\n\nReport: {files.report.resolve()}", step)
        if sheet is not None:
            native.add_image(_SHEET, np.asarray(sheet), step, dataformats="HWC")
        native.flush()
    elif library == "mlflow":
        for file in (files.results, files.report, files.recipe):
            tracker.log_artifact(str(file))
        if sheet is not None:
            import_module(library).log_image(sheet, f"{_SHEET}.png")
    elif library == "wandb":
        module: Any = import_module(library)
        shown = {"report": module.Html(files.report.read_text(encoding="utf-8"))}
        native.log(shown | ({} if sheet is None else {_SHEET: module.Image(sheet)}), step=step)
    elif library == "trackio":
        module = import_module(library)
        shown = {"results": module.Markdown(table)}
        native.log(shown | ({} if sheet is None else {_SHEET: module.Image(sheet)}), step=step)


def markdown_table(result: Result) -> str:
    """Return the metrics of a result as a table in Markdown."""
    head, *rows = result.table()
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _sheet(results: Mapping[str, Any]) -> Image.Image | None:
    uri = str(results.get("augmented", ""))
    if not uri.startswith(DATA_URI):
        return None
    return open_content(base64.b64decode(uri.removeprefix(DATA_URI)))
