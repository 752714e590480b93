"""End of a run: select the best weights, evaluate them, and write the results and the report."""

from typing import Any

from clipkit.evaluation import to_json
from clipkit.files import write_whole
from clipkit.report.run import run_report
from clipkit.training.augmented_sheet import augmented_sheet
from clipkit.training.closed_form import report_worse_than_start
from clipkit.training.folder.checkpoint import checkpoint_of
from clipkit.training.folder.resume import best_evaluation
from clipkit.training.interpolation import alphas_of, interpolated
from clipkit.training.kept_model import keep_model
from clipkit.training.measures.measures import merged_results
from clipkit.training.plan import Plan
from clipkit.training.recorder import Recorder
from clipkit.training.state import State


def finish(plan: Plan, state: State, recorder: Recorder) -> dict[str, Any]:
    """Select the best weights, evaluate them, and write results.json, report.html and model/.

    Returns:
        The content of results.json.
    """
    metric, folder = plan.recipe.metric, recorder.folder
    best = best_evaluation(folder, metric) if plan.processes.is_main else None
    best_step = plan.processes.of_main(best["step"] if best is not None else state.step)
    if best_step != state.step:
        plan.learned.load_chosen(checkpoint_of(folder.checkpoints, best_step))
    else:
        plan.learned.keep_chosen()
    plan.weights.end()
    return _write_results(plan, state, recorder, best)


def _write_results(plan: Plan, state: State, recorder: Recorder, best: dict[str, Any] | None) -> dict[str, Any]:
    """Evaluate the current weights, and write the results and the model."""
    folder, metric, train = recorder.folder, plan.recipe.metric, plan.data.train
    interpolation = _interpolate(plan, recorder) if plan.start else {}
    retention = recorder.monitor.retention_settings()
    results = merged_results(recorder.measurements, str(folder.path))
    value = results["metrics"].get(str(metric), {}).get("value")
    report_worse_than_start(state.closed_form, str(metric), value, recorder.log_line)
    results["settings"]["best"] = best and {"step": best["step"], "metric": metric, "value": best[str(metric)]}
    results["settings"] |= {
        "steps": state.step,
        "learning_rates": plan.rates,
        "loss_at_chance": plan.objective.chance,
        "micro_batch_size": state.gradients.micro_batch_size,
        "processes": plan.processes.count,
        "trained_on": train.counts,
        **({"closed_form": state.closed_form} if state.closed_form is not None else {}),
        **({"python": facts} if (facts := plan.given.facts()) else {}),
        **interpolation,
        **retention,
    }
    if train.reopened is not None:
        reopened = sum(plan.processes.gather_objects(train.reopened))
        results["settings"]["reopened_connections"] = reopened
        if reopened:
            recorder.log_line(f"{reopened} lost connections to {train.name} were opened again")
    results["seconds"] = round(state.seconds, 2)
    results["findings"] = [finding.to_dict() for finding in recorder.monitor.findings]
    if plan.processes.is_main and (sheet := augmented_sheet(plan.recipe, train.pairs)) is not None:
        results["augmented"] = sheet

    def write() -> None:
        with folder.writing():
            keep_model(plan, folder, [results])
            folder.report.unlink(missing_ok=True)  # written last: a run with both is finished
            write_whole(folder.results, to_json(results))
            write_whole(folder.report, run_report(folder.path))

    plan.processes.on_main(write)
    recorder.log_line(f"done in {results['seconds']:.0f} s: {folder.model}, {folder.report}")
    return results


def _interpolate(plan: Plan, recorder: Recorder) -> dict[str, Any]:
    """Set the model to the best interpolation between its initial and its current weights."""
    retention = recorder.monitor.retention
    settings = plan.recipe.eval
    most, names = settings.max_forgetting, {"target": str(plan.recipe.metric)}
    if retention is not None:
        names["retention"] = retention.metric
    rows, chosen = interpolated(plan.model, plan.start, recorder.figures, names, alphas_of(settings.interpolate), most)
    rule = f"the highest mean of {' and '.join(names.values())}" if retention else f"the highest {names['target']}"
    if most is not None:
        rule = f"the highest {names['target']} among mixtures that lose at most {most:g} of {names['retention']}"
    by_alpha = {row["alpha"]: row for row in rows}
    start, kept, end = by_alpha[0.0], by_alpha[chosen], by_alpha[1.0]
    shown = "; ".join(
        f"{metric} {kept[name]:.4f} (start {start[name]:.4f}, end {end[name]:.4f})" for name, metric in names.items()
    )
    recorder.log_line(
        f"saving a mixture of the weights before training (alpha 0) and after training (alpha 1), with {rule}: "
        f"alpha {chosen:g}, {shown}"
    )
    return {"interpolation": rows, "alpha": chosen, "interpolation_rule": rule, "max_forgetting": most}
