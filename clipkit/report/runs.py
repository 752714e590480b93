"""Lists and comparisons of runs, from the files in their folders."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.run_files import RunFiles, flat, last_row, read_object, read_rows, recipe_of, results_of


@dataclass(frozen=True)
class RunRow:
    """A row in a list of runs."""

    name: str
    state: str
    """`finished`, or the last logged step."""
    model: str
    data: str
    metric: str | None
    """Metric that selects the best weights."""
    value: float | None
    """Best value of the metric; if the run is finished, with its confidence interval."""
    low: float | None
    high: float | None
    loss: float | None
    """Loss of the last logged step."""
    seconds: float | None
    warnings: int
    images: int | None = None
    """Number of validation images for the metric."""


def runs_in(folder: str | Path) -> list[RunRow]:
    """Return the runs in a folder and its subfolders, newest first.

    Raises:
        DataError: the folder does not exist or contains no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found; give a folder that contains runs, e.g. runs")
    candidates = {recipe.parent for recipe in folder.glob(f"**/{RunFiles(folder).recipe.name}")}
    # A folder of recipes may contain a recipe.yaml too; a run has other files beside it.
    runs = [run for run in map(RunFiles, sorted(candidates)) if run.metrics.exists() or run.log.exists()]
    if not runs:
        raise DataError(f"{folder}: contains no run (a folder with recipe.yaml and log.txt); give a folder of runs")
    return [_row(run, folder) for run in sorted(runs, key=lambda run: -run.recipe.stat().st_mtime)]


def _row(run: RunFiles, parent: Path) -> RunRow:
    recipe = recipe_of(run.path)
    results = results_of(run.path) or {}
    guarded = read_object(run.findings)
    last_step = last_row(run.metrics) or {}
    best = results.get("settings", {}).get("best") or _best_evaluation(run, guarded.get("facts", {}).get("metric"))
    metric = best["metric"] if best else None
    figure = results.get("metrics", {}).get(metric, {})
    findings = results.get("findings", guarded.get("findings", []))
    return RunRow(
        name=str(run.path.relative_to(parent)) if run.path != parent else run.path.name,
        state="finished" if run.is_finished else f"step {last_step.get('step', 0)}",
        model=_model_name(recipe.get("model", {})),
        data=_data_name(recipe.get("data", {}).get("train", "")),
        metric=metric,
        value=figure.get("value", best["value"] if best else None),
        low=figure.get("low"),
        high=figure.get("high"),
        loss=last_step.get("loss"),
        seconds=results.get("seconds"),
        images=results.get("data", {}).get("images") or guarded.get("facts", {}).get("validation_images") or None,
        warnings=sum(finding.get("severity", finding.get("level")) != "note" for finding in findings),
    )


def _best_evaluation(run: RunFiles, metric: str | None) -> dict[str, Any] | None:
    """Return the best evaluation of an unfinished run, by the metric that selects its best weights."""
    rows = [row for row in read_rows(run.evaluations) if metric in row]
    if metric is None or not rows:
        return None
    best = max(rows, key=lambda row: row[metric])
    return {"step": best["step"], "metric": metric, "value": best[metric]}


def _model_name(model: Mapping[str, Any]) -> str:
    towers = [str(model[side]["name"]) for side in ("image", "text") if model.get(side, {}).get("name")]
    return model.get("name") or " + ".join(towers)


def _data_name(train: str | list[Mapping[str, Any]]) -> str:
    return train if isinstance(train, str) else ", ".join(str(part.get("source", part)) for part in train)


def differences(first: str | Path, second: str | Path) -> list[tuple[str, str, str]]:
    """Return the recipe keys in which two runs differ, each with both values.

    Raises:
        DataError: a folder is not a run.
    """
    one, two = (flat(recipe_of(folder)) for folder in (first, second))
    return [
        (key, _shown(one.get(key)), _shown(two.get(key)))
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]


def _shown(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
