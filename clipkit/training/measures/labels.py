"""Validation by labeled images: k-nearest neighbors and a linear probe on the image features."""

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
        model: model that is trained.
        labelled: labeled images to which the probe is fitted.
        test: labeled images on which accuracy is measured; None: a fifth of `labelled`.
        processes: processes of the run, each of which encodes a share of the data.

    Raises:
        DataError: the labeled images are not suitable for a probe, e.g. `test` has a class that `labelled` lacks.
    """

    model: DualEncoder
    labelled: LabeledImages
    test: LabeledImages | None
    processes: Processes

    def __post_init__(self) -> None:
        check_labelled(self.labelled, self.test)

    def figures(self) -> dict[str, float]:
        """Return the accuracies and mean per-class recalls of k-nearest neighbors (knn_…) and linear probe (lp_…)."""
        metrics = self._probe()["metrics"]
        return {name: figure["value"] for name, figure in metrics.items() if figure["value"] is not None}

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, with `name` as the name of the model."""
        return {**self._probe(), "model": name}

    def _probe(self) -> dict[str, Any]:
        with evaluating(self.model):
            return dict(probe(self.model, self.labelled, test=self.test, cache=False, processes=self.processes))
