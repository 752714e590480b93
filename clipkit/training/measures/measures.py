"""Selection of the evaluations of a run, and merging of their results."""

from collections.abc import Iterator, Sequence
from typing import Any

from clipkit.training.measures.labels import LabelValidation
from clipkit.training.measures.measurement import Measurement
from clipkit.training.objectives import file_of
from clipkit.training.plan import Plan


def measurements_of(plan: Plan) -> Iterator[Measurement]:
    """Yield the measurements of a run, the one with the default metric first.

    Raises:
        DataError: the labeled images do not match their test set.
    """
    measured: set[str] = set()
    validation, labelled = plan.data.validation, plan.data.labelled
    if validation is not None:
        for term in plan.recipe.terms:
            if not measured.issuperset(term.metrics):
                yield file_of(term).measure(term, plan.recipe, plan.model, validation, plan.processes)
                measured.update(term.metrics)
    if labelled:
        yield LabelValidation(plan.model, labelled[0], labelled[1] if len(labelled) > 1 else None, plan.processes)


def merged_results(measurements: Sequence[Measurement], name: str) -> dict[str, Any]:
    """Merge the results of all measurements into the result of the first.

    Metrics, examples and maps are added. The data of the other measurements is in `data`, under `views` and `labelled`.
    """
    if not measurements:
        return {"task": "train", "model": name, "data": {}, "metrics": {}, "settings": {}, "examples": []}
    first, *others = [measurement.result(name) for measurement in measurements]
    for other in others:
        first["metrics"] |= other["metrics"]
        first["examples"] += other["examples"]
        first.setdefault("map", other.get("map"))
        first["data"][{"probe": "labelled"}.get(other["task"], other["task"])] = other["data"]
    return first
