"""The interface of everything that is measured during a run."""

from typing import Any, Protocol


class Measurement(Protocol):
    """Metrics of the model with its current weights."""

    def figures(self) -> dict[str, float]:
        """Return the values alone, for evaluations.jsonl."""

    def result(self, name: str) -> dict[str, Any]:
        """Return everything that results.json holds, under this model name."""
