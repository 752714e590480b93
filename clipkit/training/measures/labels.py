"""Labelled images during a run: what nearest neighbours and a linear classifier make of the features."""

from typing import Any

from clipkit.data import LabeledImages
from clipkit.evaluation import probe
from clipkit.evaluation.tasks.probe import check_labelled
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.training.inputs import evaluating


class LabelValidation:
    """A probe of the image tower with the weights as they are.

    Args:
        model: the model that is trained.
        labelled: images to learn classes from.
        test: images to measure on; a part of `labelled` where None.
        processes: each encodes its share; all get the figures.

    Raises:
        DataError: they do not go together.
    """

    def __init__(
        self, model: DualEncoder, labelled: LabeledImages, test: LabeledImages | None, processes: Processes
    ) -> None:
        check_labelled(labelled, test)
        self.model = model
        self.labelled = labelled
        self.test = test
        self.processes = processes

    def figures(self) -> dict[str, float]:
        """knn_acc1, lp_acc1 and the means over classes."""
        return {name: own["value"] for name, own in self._probe()["metrics"].items() if own["value"] is not None}

    def result(self, name: str) -> dict[str, Any]:
        """All that results.json holds of them, under this model name."""
        result = self._probe()
        return {**result, "model": name}

    def _probe(self) -> dict[str, Any]:
        with evaluating(self.model):
            return dict(probe(self.model, self.labelled, test=self.test, cache=False, processes=self.processes))
