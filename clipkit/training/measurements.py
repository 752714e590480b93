"""All that a run measures on the way."""

from collections.abc import Sequence
from typing import Any, Protocol


class Measurement(Protocol):
    """Figures of the model as it is."""

    def figures(self) -> dict[str, float]:
        """The figures alone, for the course of the run."""

    def result(self, name: str) -> dict[str, Any]:
        """What a result file holds, under this model name."""


def merged_results(measurements: Sequence[Measurement], name: str) -> dict[str, Any]:
    """One result of all: the first one's, with the others' metrics, examples and maps.

    What the other ones were measured on stands in `data` under `views` and `labelled`.
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
