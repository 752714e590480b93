"""Validation by retrieval between images and captions of held-out pairs."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.data import IndexedFeed, Pairs, Policy, TextView
from clipkit.errors import TrainingError
from clipkit.evaluation import retrieval_result
from clipkit.metrics import batch_accuracy, recalls, retrieval_ranks
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.training.inputs import TowerInputs
from clipkit.training.objectives.objective import Encoded
from clipkit.training.stored.settings import Storing


class CaptionValidation:
    """Validation by retrieval on held-out pairs with the current weights.

    Args:
        model: model that is trained.
        pairs: held-out pairs.
        processes: processes of the run, each of which encodes a share of the data.
        batch_size: number of pairs in a global batch of the run; None: `text_accuracy` is not measured.
        storing: settings for storing outputs of frozen layers on disk; None: nothing is stored.
    """

    def __init__(
        self,
        model: DualEncoder,
        pairs: Pairs,
        processes: Processes,
        batch_size: int | None = None,
        storing: Storing | None = None,
    ) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        preprocess = model.image.preprocess
        images = Policy((), preprocess.image_size, preprocess.of_crop, preprocess, seed=0)
        texts = TextView("same", pairs)
        encoded = {"image_features": Encoded("image", images), "text_features": Encoded("text", texts)}
        self.inputs = TowerInputs(model, IndexedFeed(pairs), processes, encoded, augmented=False, storing=storing)
        self.inputs.store_parts()

    def figures(self) -> dict[str, float]:
        """Return the recalls in both directions, the mean of these recalls, and `text_accuracy`.

        `text_accuracy` is the accuracy of text-to-image retrieval among as many pairs as in a training batch.
        """
        image_features, text_features = self._features()
        ranks = retrieval_ranks(image_features, text_features, torch.from_numpy(self.pairs.image_of_caption))
        figures = recalls(ranks)
        if self.batch_size is not None:
            figures["text_accuracy"] = round(batch_accuracy(ranks.of_texts, ranks.images, self.batch_size), 6)
        return figures

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, with `name` as the name of the model."""
        image_features, text_features = self._features()
        return dict(retrieval_result(image_features, text_features, self.pairs, name, 0.0))

    def _features(self) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        return finite(self.pairs.name, *self.inputs.features())


def finite(name: str, *features: Tensor) -> Any:
    """Check that all features are finite, and return the features unchanged.

    Raises:
        TrainingError: a value is infinite or NaN; the message contains `name`, the name of the data.
    """
    if not all(one.isfinite().all() for one in features):
        raise TrainingError(
            f"{name}: the model's features of this data are not finite; use a lower optim.lr, or train.precision: fp32"
        )
    return features
