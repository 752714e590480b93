"""Score of a model on held-out data, by zero-shot classification or by retrieval."""

from typing import Any

from clipkit.data import LabeledImages, Pairs, read_labeled, read_pairs
from clipkit.errors import DataError
from clipkit.evaluation.tasks.retrieval import retrieval
from clipkit.evaluation.tasks.zeroshot import zeroshot
from clipkit.models import DualEncoder


class HeldOut:
    """Held-out data on which models are scored.

    The score is the zero-shot accuracy if the data has labels, and the mean recall of retrieval if it has captions.

    Args:
        source: class folders, a table with a label column, or images with captions.

    Raises:
        DataError: the data has neither labels nor captions.
    """

    def __init__(self, source: str) -> None:
        self.data: LabeledImages | Pairs
        try:
            self.data, self.metric = read_labeled(source), "acc1"
        except DataError:
            self.data, self.metric = read_pairs(source), "mean_recall"

    def score(self, model: DualEncoder) -> float:
        """Return the zero-shot accuracy or the mean recall of a model.

        For images with several classes, return the mean average precision.
        """
        result: Any
        if isinstance(self.data, LabeledImages):
            result = zeroshot(model, self.data, cache=False)
        else:
            result = retrieval(model, self.data, cache=False)
        figure = result["metrics"].get(self.metric) or result["metrics"]["mean_average_precision"]
        return float(figure["value"])
