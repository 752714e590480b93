"""`examine`: what a run folder says, finished or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.recipe import Recipe
from clipkit.run_files import RunFiles, read_rows, results_of
from clipkit.training.folder.checkpoint import checkpoint_steps
from clipkit.training.folder.resume import out_of_patience
from clipkit.training.guards.finding import Finding
from clipkit.training.guards.record import read_findings
from clipkit.training.guards.watch import Facts, Watch, replay

_RISING = 0.02
"""Share by which the last evaluation has to be the best one for more epochs to be worth a try."""


def examine(folder: str | Path) -> tuple[str, list[Finding]]:
    """How far a run has come, in a sentence, and what there is to say of it, worst first.

    Args:
        folder: a run's.

    Raises:
        DataError: it is no run's.

    Example:
        >>> where, findings = examine("runs/finetune_clip")       # doctest: +SKIP
    """
    run = RunFiles(folder)
    if not run.is_run:
        raise DataError(f"{run.path}: not a run folder (no recipe.yaml); give the output folder of a recipe")
    recipe = Recipe.from_yaml(run.recipe)
    metrics, speeds, evaluations = (read_rows(file) for file in (run.metrics, run.speed, run.evaluations))
    kept = read_findings(run.path)
    results = results_of(run.path)
    facts = kept[0] if kept is not None else _facts(recipe, metrics, results)
    found = [] if kept is None else [own for own in kept[1] if own.step is None or own.name == "not_finite"]
    if facts is not None:
        found += replay(Watch(facts), metrics, speeds, evaluations)
    where, finished = _where(run, recipe, metrics, facts, results)
    found += [*_of_state(run, recipe, metrics, evaluations, finished), *_of_bad_samples(run)]
    order = ("error", "warning", "note")
    return where, sorted(found, key=lambda own: (order.index(own.level), own.step or 0))


def _facts(recipe: Recipe, metrics: list[dict[str, Any]], results: dict[str, Any] | None) -> Facts | None:
    """What can be told of a run whose guards left nothing, from its recipe and its results."""
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
    )


def _where(
    run: RunFiles, recipe: Recipe, metrics: list[dict[str, Any]], facts: Facts | None, results: dict[str, Any] | None
) -> tuple[str, bool]:
    step = metrics[-1]["step"] if metrics else 0
    of = f" of {facts.steps}" if facts is not None else ""
    if results is not None and run.report.exists():
        own = results["settings"].get("steps", step)
        early = f", out of patience with {recipe.metric}" if out_of_patience(run, recipe) else ""
        return f"{run.path}: finished after step {own}{early}", True
    if step == 0:
        return f"{run.path}: has not made a step", False
    return f"{run.path}: is at step {step}{of}, not finished", False


def _of_state(
    run: RunFiles,
    recipe: Recipe,
    metrics: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    finished: bool,
) -> Iterator[Finding]:
    saved = checkpoint_steps(run.checkpoints)
    if not finished and metrics:
        at = f"its newest checkpoint is of step {saved[-1]}" if saved else "it has no checkpoint"
        yield Finding(
            "unfinished", "note", f"the run is at work or was stopped, and {at}",
            "look at log.txt for why; go on with clipkit train RECIPE --resume",
        )  # fmt: skip
    metric = recipe.metric
    values = [(row["step"], row[metric]) for row in evaluations if metric is not None and metric in row]
    if not recipe.metrics and metrics:
        yield Finding(
            "nothing_measured", "warning", "the recipe measures nothing, so the last weights are kept, good or bad",
            "set data.validation to pairs that are held out, or to a share as 0.1",
        )  # fmt: skip
    if len(values) > 2:
        best_step, best = max(values, key=lambda own: own[1])
        before = max(value for _, value in values[:-1])
        if finished and best_step == values[-1][0] and best > before * (1 + _RISING):
            yield Finding(
                "still_rising", "note", f"{metric} was best at the end ({best:.4f}, before that {before:.4f})",
                "more epochs would bring more: clipkit train RECIPE --resume train.epochs=N",
            )  # fmt: skip
        if best_step == values[0][0] and values[-1][1] < 0.95 * best:
            yield Finding(
                "best_at_first", "warning",
                f"{metric} was best at its first evaluation ({best:.4f}) and ends at {values[-1][1]:.4f}",
                "lower optim.lr, or tune fewer blocks (model.image.tune: last:4)",
            )  # fmt: skip


def _of_bad_samples(run: RunFiles) -> Iterator[Finding]:
    bad = read_rows(run.bad_samples)
    if bad:
        yield Finding(
            "bad_samples", "warning", f"{len(bad)} training images could not be had, others stood in for them",
            "bad_samples.jsonl names them; mend or drop them (clipkit data check D --fix OUT)",
        )  # fmt: skip
