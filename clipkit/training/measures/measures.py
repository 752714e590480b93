"""Selection of the evaluations of a run, and merging of their results."""

from collections.abc import Iterator, Sequence
from typing import Any

from clipkit.training.measures.labels import LabelValidation
from clipkit.training.measures.measurement import Measurement
from clipkit.training.objectives import file_of
from clipkit.training.plan import Plan


def measurements_of(plan: Plan) -> Iterator[Measurement]:
    """Yield the evaluations of a run; the first one computes the default metric of the recipe.

    Raises:
        DataError: the labeled images are not suitable for a probe.
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
    """Return one result with the metrics and examples of all evaluations, and the first map, for results.json.

    The entry `data` describes the data of the first evaluation. Its entries `views` and `labelled` describe other data.
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
