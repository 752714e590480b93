"""Going on with a run: which checkpoint is sound, and whether recipe, data and model are still those it began with."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from clipkit.errors import OutputError, RecipeError
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.run_files import RunFiles, read_rows
from clipkit.training.folder.checkpoint import checkpoint_of, checkpoint_steps, damage, read_state
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.identity import MACHINE, MEASURED

# What does not determine the weights after a step, or is the user's to extend. Data may move: its content is compared.
_MAY_CHANGE = (
    "train.epochs",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "train.log_every",
    "train.log_with",
    "train.timeout_minutes",
    "data.train",
    "data.validation",
    "data.labelled",
    "data.labelled_test",
    "data.max_bad",
    "data.workers",
    "eval.every_epochs",
    "eval.interpolate",
    "eval.metric",
    "eval.patience",
    "eval.retention",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "output",
)


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run resumes from."""

    step: int
    """Step of the checkpoint; 0: there is none, start."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: damaged checkpoints, changes."""
    finished: bool = False
    """Whether the run is complete."""
    saved: dict[str, Any] | None = None
    """The JSON state in the checkpoint; None: start."""


def find_checkpoint(
    folder: RunFolder, recipe: Recipe, steps: int, identity: Mapping[str, Any], processes: Processes
) -> Found:
    """Return on every process the checkpoint that the main process finds. Arguments and errors as in `find`."""
    found = Found(0)

    def search() -> None:
        nonlocal found
        found = find(folder, recipe, steps, identity)

    processes.on_main(search)
    step, finished = processes.of_main(found.step), bool(processes.of_main(found.finished))
    saved = read_state(checkpoint_of(folder.checkpoints, step)) if step and not finished else None
    return Found(step, found.notes, finished, saved)


def find(folder: RunFolder, recipe: Recipe, steps: int, identity: Mapping[str, Any]) -> Found:
    """The newest checkpoint that is sound, after checking that the run is still the same one. Changes nothing.

    Args:
        folder: the run's.
        recipe: as it is now.
        steps: of the whole run by this recipe.
        identity: what else determines the run, as it is now: hashes of data and frozen weights, versions.

    Raises:
        OutputError: there are checkpoints but none is sound, or the run was finished and they are gone.
        RecipeError: recipe, data or model have changed; says what.
    """
    saved = checkpoint_steps(folder.checkpoints)
    if not saved:
        return _without_checkpoints(folder, recipe, steps)
    notes = []
    for step in reversed(saved):
        reason = _unsound(folder, step)
        if reason is None:
            break
        notes.append(f"the checkpoint of step {step} is not used: {reason}")
    else:
        raise OutputError(
            f"{folder.checkpoints}: none of its checkpoints can be used ({notes[0].partition(': ')[2]}); put a sound "
            "one back, or begin again with --overwrite"
        )
    state = read_state(checkpoint_of(folder.checkpoints, step))
    notes += _changes(folder, recipe, state["recipe"], step)
    for written, before in state["identity"].items():
        name = written.replace("pictures", "images")  # as checkpoints before 0.1 name them
        now = identity[name]
        if before == now:
            continue
        if name in MEASURED:
            notes.append(f"{name} changed since: what was measured before was measured on others")
        elif name in MACHINE:
            notes.append(f"{name} changed since ({_short(before)} → {_short(now)}): the same run to rounding only")
        else:
            raise RecipeError(
                f"{folder.path}: {name} changed since step {step}; put it back as it was, or give another output"
            )
    if step > steps:
        raise RecipeError(
            f"{folder.path}: is at step {step} already, and train.epochs: {recipe.train.epochs} ends at step {steps}; "
            "give more epochs, or another output"
        )
    at_end = step == steps or out_of_patience(folder, recipe)
    done = at_end and folder.report.exists() and _steps_of_results(folder) == step
    return Found(step, notes, finished=done)


def best_evaluation(folder: RunFolder, metric: str | None) -> dict[str, Any] | None:
    """The first of the best evaluations of which there still is a checkpoint."""
    kept = set(checkpoint_steps(folder.checkpoints))
    rows = [row for row in read_rows(folder.evaluations) if row["step"] in kept]
    return max(rows, key=lambda row: row[str(metric)], default=None)


def out_of_patience(folder: RunFiles, recipe: Recipe) -> bool:
    """Whether as many evaluations as the recipe waits for were no better than the best one before them."""
    patience, metric = recipe.eval.patience, recipe.metric
    rows = read_rows(folder.evaluations)
    if patience is None or metric is None or len(rows) <= patience:
        return False
    best = max(rows, key=lambda row: row[metric])  # of equals the first
    return len(rows) - 1 - rows.index(best) >= patience


def _without_checkpoints(folder: RunFolder, recipe: Recipe, steps: int) -> Found:
    if not folder.results.exists() and not folder.model.exists():
        return Found(0, [])
    if folder.recipe.exists():
        _changes(folder, recipe, yaml.safe_load(folder.recipe.read_text(encoding="utf-8")), steps)
        if _steps_of_results(folder) == steps:
            return Found(steps, [], finished=True)
    raise OutputError(
        f"{folder.path}: holds a model but no checkpoints to go on from; begin again with --overwrite, "
        "or give another output"
    )


def _unsound(folder: RunFolder, step: int) -> str | None:
    """Why a checkpoint cannot be used: itself, the best one that it relies on, or the log that goes with it."""
    reason = damage(checkpoint_of(folder.checkpoints, step))
    if reason is not None:
        return reason
    state = read_state(checkpoint_of(folder.checkpoints, step))
    altered = folder.altered(state["logs"])
    if altered is not None:
        return f"{altered} is not as it was at that step"
    best = state["best"]
    if best is not None and best != step:
        reason = damage(checkpoint_of(folder.checkpoints, best))
        if reason is not None:
            return f"its best weights are those of step {best}, where {reason}"
    return None


def _changes(folder: RunFolder, recipe: Recipe, before: Mapping[str, Any], step: int) -> list[str]:
    """What changed and may, as lines.

    Raises:
        RecipeError: something changed that may not.
    """
    with suppress(RecipeError):  # keys that are new since have their defaults, and values their present names
        before = Recipe.from_dict(before).model_dump(mode="json")
    old, new = dict(_flat(before)), dict(_flat(recipe.model_dump(mode="json")))
    allowed: list[str] = []
    refused: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            change = f"{key}: {_short(old.get(key))} → {_short(new.get(key))}"
            (allowed if key in _MAY_CHANGE else refused).append(change)
    if refused:
        raise RecipeError(
            f"{folder.path}: the recipe changed since step {step} ({'; '.join(refused)}); put it back as it was, "
            "or give another output"
        )
    return [f"changed since step {step}: {change}" for change in allowed]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and prefix + key != "model.text.config":
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _steps_of_results(folder: RunFolder) -> int | None:
    if not folder.results.exists():
        return None
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    return results["settings"].get("steps")
