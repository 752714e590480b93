"""One score of a model on any held-out data: zero-shot accuracy with labels, mean recall with captions."""

from typing import Any

from clipkit.data import LabeledImages, Pairs, read_labeled, read_pairs
from clipkit.errors import DataError
from clipkit.evaluation.tasks.retrieval import retrieval
from clipkit.evaluation.tasks.zeroshot import zeroshot
from clipkit.models import DualEncoder


class HeldOut:
    """Held-out data, scored by zero-shot accuracy if it has labels, otherwise by mean recall.

    Args:
        source: class folders, a table with a label column, or captions.

    Raises:
        DataError: the data have neither labels nor captions.
    """

    def __init__(self, source: str) -> None:
        self.data: LabeledImages | Pairs
        try:
            self.data, self.metric = read_labeled(source), "acc1"
        except DataError:
            self.data, self.metric = read_pairs(source), "mean_recall"

    def score(self, model: DualEncoder) -> float:
        """Return the value of the metric. If images have several classes, it is the mean average precision."""
        result: Any
        if isinstance(self.data, LabeledImages):
            result = zeroshot(model, self.data, cache=False)
        else:
            result = retrieval(model, self.data, cache=False)
        figure = result["metrics"].get(self.metric) or result["metrics"]["mean_average_precision"]
        return float(figure["value"])
