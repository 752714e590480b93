"""Facts (about data, model and machine) and earlier choices, on which the rules of a suggested recipe depend."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipkit.suggestion.data_facts import DataFacts
from clipkit.suggestion.machine_facts import MachineFacts
from clipkit.suggestion.model_facts import ModelFacts


@dataclass(frozen=True)
class Choice:
    """Value of a key in a suggested recipe, with the reason and its source."""

    value: Any
    reason: str = ""
    """Reason for the value; empty for a value that the user gave."""
    source: str = ""
    """Paper, repository or page on which the choice is based; empty if the reason needs none."""


@dataclass(frozen=True)
class Situation:
    """Facts about data, model and machine, and the values that earlier rules chose."""

    data: DataFacts
    model: ModelFacts
    machine: MachineFacts
    validation: str | None
    """Validation data that the user gave; None: not given."""
    retention: str | None
    """Data that the user gave, on which the model should not get worse; None: not given."""
    chosen: Mapping[str, Any]
    """Recipe key -> value that an earlier rule of the table chose."""

    @property
    def images(self) -> int:
        """Number of training images, without the images held out for validation."""
        share = self.chosen.get("data.validation")
        return self.data.images - round(share * self.data.images) if isinstance(share, float) else self.data.images

    @property
    def tune(self) -> str:
        """Tuning method chosen for the image tower."""
        return str(self.chosen["model.image.tune"])

    @property
    def steps_per_epoch(self) -> int:
        """Number of training steps (batches) per epoch."""
        every = self.chosen.get("data.captions") == "all"
        pairs = self.images * (self.data.captions_per_image if every else 1)
        return max(1, int(pairs) // int(self.chosen["train.batch_size"]))

    def hours(self, epochs: int) -> float:
        """Return the estimated hours of full tuning, if a training step takes as long as three forward passes."""
        return 3 * self.model.operations * self.images * epochs / self.machine.operations / 3600
