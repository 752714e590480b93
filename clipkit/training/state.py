"""State of a run: the step, the tensors that training changes, and the elapsed time."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.training.identity import MACHINE
from clipkit.training.plan import Plan
from clipkit.training.step import Step


@dataclass(eq=False)
class State:
    """State of a run: everything that changes during the run and is saved in checkpoints.

    Args:
        plan: the plan of the run; its `learned` has the tensors.
        gradients: the training step; its micro-batch may become smaller.
        closed_form: settings and metrics of the initial projections by CCA; None without CCA.
    """

    plan: Plan
    gradients: Step
    closed_form: dict[str, Any] | None = None
    step: int = field(default=0, init=False)
    """Number of updates so far."""
    saved_at: int = field(default=0, init=False)
    """Step of the last checkpoint; step 0 needs no checkpoint."""
    _seconds_before: float = field(default=0.0, init=False)

    @property
    def seconds(self) -> float:
        """Duration of the run in seconds, including the time before it was resumed."""
        return self._seconds_before + time.monotonic() - self.plan.began

    def restore(self, checkpoint: Path, saved: dict[str, Any], step: int) -> None:
        """Load the weights, the optimizer, the averaged weights and the gradient scaler from a checkpoint."""
        self.plan.learned.load(checkpoint)
        self.step = self.saved_at = step
        self._seconds_before = saved["seconds"]
        scaler = self.plan.accelerator.scaler
        if scaler is not None and saved["scaler"] is not None:
            scaler.load_state_dict(saved["scaler"])

    def to_save(self) -> dict[str, Any]:
        """Return the JSON content of a checkpoint."""
        scaler = self.plan.accelerator.scaler
        return {
            "seconds": round(self.seconds, 2),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "micro_batch_size": self.gradients.micro_batch_size,
            "recipe": self.plan.recipe.without_credentials().model_dump(mode="json"),
            "identity": self.plan.identity,
            "closed_form": self.closed_form,
        }


def resumed_micro_batch_size(plan: Plan, saved: dict[str, Any] | None) -> int | None:
    """Return the micro-batch size of the interrupted run, which gives bit-identical results.

    The result is None for a new run, or if the machine or `train.micro_batch_size` has changed.
    """
    if saved is None or any(saved["identity"][part] != plan.identity[part] for part in MACHINE):
        return None
    same = saved["recipe"]["train"]["micro_batch_size"] == plan.recipe.train.micro_batch_size
    return int(saved["micro_batch_size"]) if same else None
