"""Validation by labeled images: k-nearest neighbors and a linear probe on the features of the image tower."""

from dataclasses import dataclass
from typing import Any

from clipkit.data import LabeledImages
from clipkit.embedding.shared import evaluating
from clipkit.evaluation import probe
from clipkit.evaluation.tasks.probe import check_labelled
from clipkit.models import DualEncoder
from clipkit.processes import Processes


@dataclass(eq=False)
class LabelValidation:
    """Validation by k-nearest neighbors and a linear probe with the current weights.

    Args:
        model: the model that is trained.
        labelled: labeled training images of the probe.
        test: labeled test images; None: a part of `labelled`.
        processes: the processes of the run. Each encodes a share of the data; all get the result.

    Raises:
        DataError: `test` has classes that are missing in `labelled`.
    """

    model: DualEncoder
    labelled: LabeledImages
    test: LabeledImages | None
    processes: Processes

    def __post_init__(self) -> None:
        check_labelled(self.labelled, self.test)

    def figures(self) -> dict[str, float]:
        """Return knn_acc1, lp_acc1 and the means over classes."""
        metrics = self._probe()["metrics"]
        return {name: figure["value"] for name, figure in metrics.items() if figure["value"] is not None}

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, under this model name."""
        return {**self._probe(), "model": name}

    def _probe(self) -> dict[str, Any]:
        with evaluating(self.model):
            return dict(probe(self.model, self.labelled, test=self.test, cache=False, processes=self.processes))
