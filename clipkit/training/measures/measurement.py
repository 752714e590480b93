"""Interface of the evaluations during a run."""

from typing import Any, Protocol


class Measurement(Protocol):
    """Evaluation of a model with its current weights, repeated during a run."""

    def figures(self) -> dict[str, float]:
        """Return the metric values by name, for evaluations.jsonl."""

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, with `name` as the name of the model."""
