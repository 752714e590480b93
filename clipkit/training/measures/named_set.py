"""Retention on a dataset that the recipe names."""

from collections.abc import Callable

import numpy as np
import torch

from clipkit.data import IndexedFeed, LabeledImages, Pairs, Policy, TextView, prompts_of, read_labeled, read_pairs
from clipkit.errors import DataError
from clipkit.evaluation.classifier import TEMPLATES, ClassNames, classifier_of
from clipkit.evaluation.given import checked_templates
from clipkit.findings import counted
from clipkit.metrics import classification, recalls, retrieval_ranks, similarity
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.training.inputs import TowerInputs
from clipkit.training.measures.captions import finite
from clipkit.training.objectives.objective import Encoded


class NamedSet:
    """Retention of abilities on a dataset: zero-shot accuracy with labels, or mean recall with captions.

    A frozen trunk encodes the dataset only once.

    Args:
        model: model that is trained.
        source: class folders, a table with a label column, or a dataset with captions.
        processes: processes of the run, each of which encodes a share of the data.

    Raises:
        DataError: the dataset has neither labels nor captions.
    """

    def __init__(self, model: DualEncoder, source: str, processes: Processes) -> None:
        self.model = model
        self._value: Callable[[], float]
        try:
            labeled = read_labeled(source)
        except DataError as no_labels:
            try:
                pairs = read_pairs(source)
            except DataError as no_captions:
                raise DataError(
                    f"eval.retention {source}: cannot be read as labeled images ({no_labels}), nor as images with "
                    f"captions ({no_captions}); correct the data, or remove it from eval.retention"
                ) from None
            self.metric, self._value = "retention_mean_recall", self._mean_recall
        else:
            pairs, self.metric, self._value = self._prompts(labeled), "retention_acc1", self._accuracy
        self.pairs = pairs
        self.name = f"{source} ({counted(len(pairs.images), 'image')})"
        preprocess = model.image.preprocess
        images = Policy((), preprocess.image_size, preprocess.of_crop, preprocess, seed=0)
        encoded = {
            "image_features": Encoded("image", images),
            "text_features": Encoded("text", TextView("same", pairs)),
        }
        self.inputs = TowerInputs(model, IndexedFeed(pairs), processes, encoded, augmented=False)

    def value(self) -> float:
        return self._value()

    def _mean_recall(self) -> float:
        ranks = retrieval_ranks(*self._features(), torch.from_numpy(self.pairs.image_of_caption))
        return recalls(ranks)["mean_recall"]

    def _accuracy(self) -> float:
        image_features, text_features = self._features()
        scores = similarity(image_features, classifier_of(text_features.split(self._counts)))
        figures = classification(scores, self._labels)
        return float(figures.get("acc1") or figures.get("mean_average_precision") or 0.0)

    def _prompts(self, labeled: LabeledImages) -> Pairs:
        """Return the images with the zero-shot prompts of all classes as captions.

        Also set `_labels`, the labels of the images, and `_counts`, the number of prompts of each class.
        """
        names = ClassNames.of(labeled, None)
        templates = checked_templates(labeled.templates or TEMPLATES)
        prompts = [prompts_of(label, each, templates) for label, each in zip(names.labels, names.names, strict=True)]
        self._labels = names.labels_of(labeled)
        self._counts = [len(of_class) for of_class in prompts]
        texts = [prompt for of_class in prompts for prompt in of_class]
        return Pairs(labeled.name, labeled.images, texts, np.zeros(len(texts), np.int64))

    def _features(self) -> tuple[torch.Tensor, torch.Tensor]:
        image_features, text_features = finite(self.pairs.name, *self.inputs.features())
        return image_features, text_features
