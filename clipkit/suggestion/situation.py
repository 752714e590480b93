"""Data, model and machine of a suggestion, and the values chosen so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipkit.suggestion.data_facts import DataFacts
from clipkit.suggestion.machine_facts import MachineFacts
from clipkit.suggestion.model_facts import ModelFacts


@dataclass(frozen=True)
class Choice:
    """Value of a recipe key, with the reason and its source."""

    value: Any
    reason: str = ""
    """Empty for a value that the user gave."""
    source: str = ""
    """Paper, repository or page on which the choice is based; empty if the reason needs none."""


@dataclass(frozen=True)
class Situation:
    """Facts on which a rule may depend, and the choices made so far."""

    data: DataFacts
    model: ModelFacts
    machine: MachineFacts
    validation: str | None
    """Validation data that the user names."""
    retention: str | None
    """Data that the user names, on which the model should not get worse."""
    chosen: Mapping[str, Any]
    """Values of the keys whose rules come earlier in the table."""

    @property
    def images(self) -> int:
        """Number of training images, without held-out images."""
        share = self.chosen.get("data.validation")
        return self.data.images - round(share * self.data.images) if isinstance(share, float) else self.data.images

    @property
    def tune(self) -> str:
        """Tuning method of the image tower."""
        return str(self.chosen["model.image.tune"])

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        every = self.chosen.get("data.captions") == "all"
        pairs = self.images * (self.data.captions_per_image if every else 1)
        return max(1, int(pairs) // int(self.chosen["train.batch_size"]))

    def hours(self, epochs: int) -> float:
        """Estimate the hours of full tuning, if a training pass takes as long as three forward passes."""
        return 3 * self.model.operations * self.images * epochs / self.machine.operations / 3600
