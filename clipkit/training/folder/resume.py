"""Resuming of a run: find the newest usable checkpoint, and check that recipe, data and model are unchanged."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from clipkit.data.pairs import UNIDENTIFIED
from clipkit.errors import OutputError, RecipeError
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.run_files import RunFiles, flat, read_rows, recipe_of, results_of
from clipkit.training.folder.checkpoint import checkpoint_of, checkpoint_steps, damage, read_state
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.identity import MACHINE, MEASURED

# Keys or sections that may change when a run resumes: they do not affect the weights after a step, or they extend the
# run. Data may be moved, because its content is compared.
_MAY_CHANGE = (
    "train.epochs",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "train.shard",
    "train.cpu_offload",
    "train.log_every",
    "train.log_with",
    "train.timeout_minutes",
    "data.train",
    "data.validation",
    "data.labelled",
    "data.labelled_test",
    "data.max_bad",
    "data.store",
    "data.workers",
    "eval",
    "checkpoint",
    "output",
)


@dataclass(frozen=True)
class StartPoint:
    """Point from which a run starts: its beginning, or a checkpoint from which it resumes."""

    step: int
    """Step of the checkpoint; 0 if there is no checkpoint and the run starts from the beginning."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user about damaged checkpoints and changes of the recipe."""
    finished: bool = False
    """True if the run is already complete."""
    saved: dict[str, Any] | None = None
    """JSON content of the checkpoint, or None if there is no checkpoint."""


def find_checkpoint(
    folder: RunFolder, recipe: Recipe, steps: int, identity: Mapping[str, Any], processes: Processes
) -> StartPoint:
    """Find the newest usable checkpoint on the main process, and return it on every process.

    The arguments and errors are those of `newest_usable`.
    """
    start = StartPoint(0)

    def search() -> None:
        nonlocal start
        start = newest_usable(folder, recipe, steps, identity)

    processes.on_main(search)
    step, finished = processes.of_main(start.step), bool(processes.of_main(start.finished))
    saved = read_state(checkpoint_of(folder.checkpoints, step)) if step and not finished else None
    return StartPoint(step, start.notes, finished, saved)


def newest_usable(folder: RunFolder, recipe: Recipe, steps: int, identity: Mapping[str, Any]) -> StartPoint:
    """Return the newest usable checkpoint, if the recipe, the data and the model still match this checkpoint.

    No file is changed.

    Args:
        steps: number of steps of the whole run with this recipe.
        identity: everything else that determines the result: hashes of data and frozen weights, versions.

    Raises:
        OutputError: no checkpoint is usable, or the folder has a model but no checkpoints.
        RecipeError: the recipe, the data or the model has changed; the message says what.
    """
    saved = checkpoint_steps(folder.checkpoints)
    if not saved:
        return _without_checkpoints(folder, recipe, steps)
    notes = []
    for step in reversed(saved):
        reason = _problem(folder, step)
        if reason is None:
            break
        notes.append(f"the checkpoint of step {step} is not used: {reason}")
    else:
        # An intact checkpoint can be used even if lines of the logs are lost, but not if the logs were edited.
        step, repairs = next(_repairable(folder, reversed(saved)), (0, []))
        notes += repairs
    if not step:
        raise OutputError(
            f"{folder.checkpoints}: no checkpoint is usable ({notes[0].partition(': ')[2]}); restore an "
            "undamaged checkpoint, or start again with --overwrite"
        )
    state = read_state(checkpoint_of(folder.checkpoints, step))
    notes += _changes(folder, recipe, state["recipe"], step)
    for saved_name, before in state["identity"].items():
        name = saved_name.replace("pictures", "images")  # the name in checkpoints from before version 0.1
        now = identity.get(name)
        if UNIDENTIFIED in (before, now):
            raise RecipeError(
                f"{folder.path}: {name} are Python objects without an identity, so they may have changed "
                f"since step {step}; start a new run with identity='content', or with data in files"
            )
        if before == now:
            continue
        if name in MEASURED:
            notes.append(f"{name} changed since step {step}: earlier evaluations used other images")
        elif name in MACHINE:
            change = f"{_short(before)} → {_short(now)}"
            notes.append(f"{name} changed since step {step} ({change}): results may differ by rounding errors")
        else:
            raise RecipeError(
                f"{folder.path}: {name} changed since step {step}; undo the change, or give another output folder"
            )
    if step > steps:
        raise RecipeError(
            f"{folder.path}: the run is already at step {step}, but train.epochs: {recipe.train.epochs} ends the run "
            f"at step {steps}; increase train.epochs, or give another output folder"
        )
    at_end = step == steps or out_of_patience(folder, recipe)
    done = at_end and folder.report.exists() and _steps_of_results(folder) == step
    return StartPoint(step, notes, finished=done)


def best_evaluation(folder: RunFolder, metric: str | None) -> dict[str, Any] | None:
    """Return the best evaluation whose checkpoint still exists; ties go to the earliest evaluation."""
    kept = set(checkpoint_steps(folder.checkpoints))
    rows = [row for row in read_rows(folder.evaluations) if row["step"] in kept and metric in row]
    return max(rows, key=lambda row: row[str(metric)], default=None)


def out_of_patience(folder: RunFiles, recipe: Recipe) -> bool:
    """Return whether the last `eval.patience` evaluations were no better than the best one before them."""
    patience, metric = recipe.eval.patience, recipe.metric
    rows = [row for row in read_rows(folder.evaluations) if metric in row]
    if patience is None or metric is None or len(rows) <= patience:
        return False
    best = max(rows, key=lambda row: row[metric])  # the first one in a tie
    return len(rows) - 1 - rows.index(best) >= patience


def _without_checkpoints(folder: RunFolder, recipe: Recipe, steps: int) -> StartPoint:
    if not folder.results.exists() and not folder.model.exists():
        return StartPoint(0)
    if folder.recipe.exists():
        _changes(folder, recipe, recipe_of(folder.path), steps)
        if _steps_of_results(folder) == steps:
            return StartPoint(steps, finished=True)
    raise OutputError(
        f"{folder.path}: contains a model but no checkpoints to resume from; start again with --overwrite, or "
        "give another output folder"
    )


def _repairable(folder: RunFolder, steps: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
    """Yield the step of each checkpoint that is usable once damaged logs are repaired.

    Each step comes with one message for each damaged log.
    """
    for step in steps:
        if _damage(folder, step) is None:
            marks = read_state(checkpoint_of(folder.checkpoints, step))["logs"]
            damaged = folder.damaged(marks)
            if len(damaged) == sum(folder.altered({name: mark}) is not None for name, mark in marks.items()):
                yield (
                    step,
                    [
                        f"the checkpoint of step {step} is used, and damaged logs are repaired: {line}"
                        for line in damaged
                    ],
                )


def _problem(folder: RunFolder, step: int) -> str | None:
    """Return the reason why a run cannot resume from the checkpoint of a step; None if it can.

    Possible reasons are damage to this checkpoint or to the one with the best weights so far, and changed log entries
    from before the step.
    """
    reason = _damage(folder, step)
    if reason is not None:
        return reason
    altered = folder.altered(read_state(checkpoint_of(folder.checkpoints, step))["logs"])
    return None if altered is None else f"{altered} has changed since that step"


def _damage(folder: RunFolder, step: int) -> str | None:
    """Return the damage to the checkpoint of a step, or to the checkpoint with the best weights so far.

    The result is None if both are intact.
    """
    reason = damage(checkpoint_of(folder.checkpoints, step))
    if reason is not None:
        return reason
    best = read_state(checkpoint_of(folder.checkpoints, step))["best"]
    if best is not None and best != step:
        reason = damage(checkpoint_of(folder.checkpoints, best))
        if reason is not None:
            return f"the best weights so far are in the checkpoint of step {best}, but {reason}"
    return None


def _changes(folder: RunFolder, recipe: Recipe, before: Mapping[str, Any], step: int) -> list[str]:
    """Return the allowed changes of the recipe since the checkpoint of a step, one line each.

    Args:
        before: the recipe in the checkpoint.

    Raises:
        RecipeError: a key changed that must not change.
    """
    section = before.get("model")
    if isinstance(section, dict) and section.get("name") is None and "start" not in section:
        # Before this key existed, all projections started random.
        section["start"] = recipe.model.start if recipe.start == "random" else "random"
    with suppress(RecipeError):  # gives new keys their defaults, and old values their current names
        former = Recipe.from_dict(before)
        before = former.without_credentials().model_dump(mode="json")
        if former.captions() == recipe.captions():  # auto is equal to the value that it selects
            before["data"]["captions"] = recipe.data.captions
    old, new = flat(before), flat(recipe.without_credentials().model_dump(mode="json"))
    allowed: list[str] = []
    refused: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            change = f"{key}: {_short(old.get(key))} → {_short(new.get(key))}"
            may_change = key in _MAY_CHANGE or key.partition(".")[0] in _MAY_CHANGE
            (allowed if may_change else refused).append(change)
    if refused:
        raise RecipeError(
            f"{folder.path}: the recipe changed since step {step} ({'; '.join(refused)}); undo the change or give "
            "another output folder"
        )
    return [f"changed since step {step}: {change}" for change in allowed]


def _short(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _steps_of_results(folder: RunFolder) -> int | None:
    results = results_of(folder.path)
    return None if results is None else results["settings"].get("steps")
