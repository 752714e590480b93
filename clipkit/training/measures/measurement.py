"""Interface of the evaluations during a run."""

from typing import Any, Protocol


class Measurement(Protocol):
    """Evaluation of the model with its current weights."""

    def figures(self) -> dict[str, float]:
        """Return only the metric values, for evaluations.jsonl."""

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, under this model name."""
