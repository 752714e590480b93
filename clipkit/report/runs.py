"""Runs side by side, from the files in their folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipkit.errors import DataError


@dataclass(frozen=True)
class RunRow:
    """One run in a list."""

    name: str
    state: str
    """finished, or at which step it is."""
    model: str
    data: str
    metric: str | None
    value: float | None
    low: float | None
    high: float | None
    loss: float | None
    """Of the last logged step."""
    seconds: float | None
    warnings: int


def runs_in(folder: str | Path) -> list[RunRow]:
    """The runs in a folder, or in folders in it, the newest first.

    Raises:
        DataError: there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the one in which runs lie, as runs")
    found = sorted({own.parent for own in [*folder.glob("recipe.yaml"), *folder.glob("**/recipe.yaml")]})
    # A folder of recipes holds files of that name too; a run has written something beside it.
    runs = [own for own in found if any((own / name).exists() for name in ("metrics.jsonl", "log.txt"))]
    if not runs:
        raise DataError(f"{folder}: has no run in it (a folder with recipe.yaml and log.txt); give another one")
    return [_row(own, folder) for own in sorted(runs, key=lambda own: -(own / "recipe.yaml").stat().st_mtime)]


def _row(run: Path, inside: Path) -> RunRow:
    recipe = recipe_of(run)
    results = results_of(run)
    steps = _last_row(run / "metrics.jsonl")
    best = (results or {}).get("settings", {}).get("best") or _best_of(run, recipe)
    metric = best["metric"] if best else None
    figure = (results or {}).get("metrics", {}).get(metric, {}) if metric else {}
    findings = (results or {}).get("findings")
    if findings is None:
        findings = _json(run / "findings.json").get("findings", [])
    model = recipe.get("model", {})
    whole = model.get("name") or " + ".join(
        str(model[side]["name"]) for side in ("image", "text") if model.get(side, {}).get("name")
    )
    train = recipe.get("data", {}).get("train", "")
    return RunRow(
        name=str(run.relative_to(inside)) if run != inside else run.name,
        state="finished" if results and (run / "report.html").exists() else f"step {(steps or {}).get('step', 0)}",
        model=whole,
        data=train if isinstance(train, str) else ", ".join(str(own.get("source", own)) for own in train),
        metric=metric,
        value=figure.get("value", best["value"] if best else None),
        low=figure.get("low"),
        high=figure.get("high"),
        loss=(steps or {}).get("loss"),
        seconds=(results or {}).get("seconds"),
        warnings=sum(own.get("severity", own.get("level")) != "note" for own in findings),
    )


def differences(first: str | Path, second: str | Path) -> list[tuple[str, str, str]]:
    """Keys of two runs' recipes whose values differ, and both values.

    Raises:
        DataError: one of them is no run.
    """
    one, two = (_flat(recipe_of(Path(own))) for own in (first, second))
    return [
        (key, _shown(one.get(key)), _shown(two.get(key)))
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]


def recipe_of(run: Path) -> dict[str, Any]:
    """The recipe in a run folder.

    Raises:
        DataError: it is no run.
    """
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, dict):
        raise DataError(f"{run}: is no run (it has no recipe.yaml); give a folder that a recipe's output names")
    return recipe


def results_of(run: Path) -> dict[str, Any] | None:
    """What results.json holds; None before there is one."""
    return _json(run / "results.json") or None


def _best_of(run: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The best evaluation of a run that is not finished, by the metric that its recipe or its first row names."""
    rows = [json.loads(line) for line in _lines(run / "evaluations.jsonl")]
    if not rows:
        return None
    metric = recipe.get("eval", {}).get("metric", "auto")
    if metric == "auto":
        metric = "mean_recall" if "mean_recall" in rows[0] else next(name for name in rows[0] if name != "step")
    best = max(rows, key=lambda row: row.get(metric, 0.0))
    return {"step": best["step"], "metric": metric, "value": best.get(metric)}


def _last_row(file: Path) -> dict[str, Any] | None:
    for line in reversed(_lines(file)):
        try:
            row: dict[str, Any] = json.loads(line)
            return row
        except ValueError:  # cut short by a kill
            continue
    return None


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _shown(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
