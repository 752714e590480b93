"""Examination of the folder of a finished or unfinished run, for `clipkit doctor`.

To add a rule about a run folder, write a function, add a row to `FOLDER_RULES`, and test it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.findings import Finding, Rule, apply, most_severe_first
from clipkit.recipe import Recipe
from clipkit.run_files import IN_METRICS, IN_SPEED, RunFiles, read_rows, results_of
from clipkit.training.folder.checkpoint import checkpoint_steps
from clipkit.training.folder.resume import out_of_patience
from clipkit.training.guards.logs import Facts
from clipkit.training.guards.record import read_findings
from clipkit.training.guards.watch import Watch, replay

_RISE = 0.02
"""Relative gain of the last evaluation over earlier ones from which more epochs are recommended."""


@dataclass(frozen=True)
class Examined:
    """Contents of a run folder that the rules examine."""

    run: RunFiles
    recipe: Recipe
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    is_finished: bool

    @property
    def figures(self) -> list[tuple[int, float]]:
        """(step, value of the recipe's main metric) for each evaluation."""
        metric = self.recipe.metric
        return [(row["step"], row[metric]) for row in self.evaluations if metric is not None and metric in row]


def examine(folder: str | Path) -> tuple[str, list[Finding]]:
    """Return a sentence about the progress of a run, and all findings about the run, the most severe first.

    Args:
        folder: output folder of the run.

    Raises:
        DataError: the folder is not a run folder.

    Example:
        >>> state, findings = examine("runs/finetune_clip")       # doctest: +SKIP
    """
    run = RunFiles(folder)
    if not run.is_run:
        raise DataError(f"{run.path}: is not a run folder (it has no recipe.yaml); give the output folder of a run")
    recipe = Recipe.from_yaml(run.recipe)
    metrics, speeds = read_rows(run.metrics, IN_METRICS), read_rows(run.speed, IN_SPEED)
    evaluations = read_rows(run.evaluations)
    kept = read_findings(run.path)
    results = results_of(run.path)
    facts = kept[0] if kept is not None else _facts(recipe, metrics, results)
    findings = [] if kept is None else [each for each in kept[1] if each.step is None or each.name == "not_finite"]
    if facts is not None:
        findings += replay(Watch(facts), metrics, speeds, evaluations)
    state, is_finished = _state(run, recipe, metrics, facts, results)
    examined = Examined(run, recipe, metrics, evaluations, is_finished)
    findings += apply(FOLDER_RULES, examined)
    return state, most_severe_first(findings)


def _facts(recipe: Recipe, metrics: list[dict[str, Any]], results: dict[str, Any] | None) -> Facts | None:
    """Reconstruct the facts of a run, e.g. its batch size, if findings.json is missing or unreadable.

    The result is None if the run has logged no step or has no results.
    """
    if not metrics or results is None:
        return None
    steps = int(results["settings"].get("steps", metrics[-1]["step"]))
    warmup = recipe.optim.warmup
    return Facts(
        batch_size=recipe.train.batch_size,
        rising=round(warmup * steps) if warmup < 1 else int(warmup),
        steps=steps,
        chance=results["settings"].get("loss_at_chance"),
        start_scale=metrics[0].get("scale", 1.0),
        largest_scale=None,
        metric=recipe.metric,
        validation_images=int(results.get("data", {}).get("images", 0)),
    )


def _state(
    run: RunFiles, recipe: Recipe, metrics: list[dict[str, Any]], facts: Facts | None, results: dict[str, Any] | None
) -> tuple[str, bool]:
    step = metrics[-1]["step"] if metrics else 0
    if results is not None and run.report.exists():
        last = results["settings"].get("steps", step)
        early = f", stopped early by eval.patience ({recipe.metric})" if out_of_patience(run, recipe) else ""
        return f"{run.path}: finished after step {last}{early}", True
    if step == 0:
        return f"{run.path}: has no finished step", False
    steps = f" of {facts.steps}" if facts is not None else ""
    return f"{run.path}: is at step {step}{steps}, not finished", False


def unfinished(examined: Examined) -> Finding | None:
    """Report a run that is still running or was stopped."""
    if examined.is_finished or not examined.metrics:
        return None
    saved = checkpoint_steps(examined.run.checkpoints)
    checkpoint = f"its newest checkpoint is from step {saved[-1]}" if saved else "it has no checkpoint"
    return Finding(
        "unfinished", "note", f"the run is still running or was stopped, and {checkpoint}",
        "if the run was stopped, see log.txt for the reason, and resume with clipkit train RECIPE --resume",
    )  # fmt: skip


def nothing_measured(examined: Examined) -> Finding | None:
    """Report a run that was not evaluated, because its recipe has no validation data."""
    if examined.recipe.metrics or not examined.metrics:
        return None
    return Finding(
        "nothing_measured", "warning",
        "the recipe has no validation data, so the last weights are kept, even if earlier weights were better",
        "set data.validation to held-out data, or to a share of the training images, e.g. 0.1",
    )  # fmt: skip


def still_rising(examined: Examined) -> Finding | None:
    """Report a finished run whose last evaluation is clearly the best."""
    figures = examined.figures
    if len(figures) < 3 or not examined.is_finished:
        return None
    last, before = figures[-1][1], max(value for _, value in figures[:-1])
    if last <= before * (1 + _RISE) or last <= before:
        return None
    return Finding(
        "still_rising", "note", f"{examined.recipe.metric} was best at the last "
                f"evaluation ({last:.4f}; best before: {before:.4f})",
        "train for more epochs: clipkit train RECIPE --resume train.epochs=N",
    )  # fmt: skip


def best_at_first(examined: Examined) -> Finding | None:
    """Report a run whose first evaluation is clearly the best."""
    figures = examined.figures
    if len(figures) < 3 or max(figures, key=lambda figure: figure[1]) != figures[0]:
        return None
    first, last = figures[0][1], figures[-1][1]
    if last >= 0.95 * first:
        return None
    return Finding(
        "best_at_first", "warning",
        f"{examined.recipe.metric} was best at the first evaluation ({first:.4f}) and is {last:.4f} at the end",
        "use a lower optim.lr, or tune fewer blocks (model.image.tune: last:4)",
    )  # fmt: skip


def bad_samples(examined: Examined) -> Finding | None:
    """Report training images that were missing or unreadable and were replaced."""
    bad = read_rows(examined.run.bad_samples)
    if not bad:
        return None
    return Finding(
        "bad_samples", "warning", f"{len(bad)} training images are missing or unreadable and were replaced by others",
        "see bad_samples.jsonl; fix these images, or drop them (clipkit data check D --fix OUT)",
    )  # fmt: skip


FOLDER_RULES = (
    Rule("unfinished", unfinished, "the run is still running or was stopped"),
    Rule("nothing_measured", nothing_measured, "the recipe has no validation data"),
    Rule("still_rising", still_rising, "the last evaluation is the best by more than 2 %: more epochs may help"),
    Rule("best_at_first", best_at_first, "the first evaluation is the best, and the last one is 5 % worse"),
    Rule("bad_samples", bad_samples, "training images were missing or unreadable and were replaced"),
)  # fmt: skip
