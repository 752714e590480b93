"""Validation by image views: retrieval of one view of a held-out image with another view of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data import IndexedFeed, Pairs, Sample
from clipkit.embedding.shared import encode_shared, evaluating
from clipkit.evaluation.figures import Column, Queries
from clipkit.metrics import alignment, retrieval_ranks
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.training.inputs import TowerInputs
from clipkit.training.measures.captions import finite
from clipkit.training.measures.views import BATCH, KS, ViewScores
from clipkit.training.objectives.objective import Encoded
from clipkit.training.objectives.views import through_head
from clipkit.training.transfer import send


@dataclass(eq=False)
class ImageViewValidation:
    """Validation by retrieval between two views of held-out images, in both directions.

    The views are the first two of the recipe, augmented as in the first epoch. Recall, alignment and uniformity are
    measured on the features that the loss uses, after the head. The neighbors and the map in the result are computed
    from the features of the saved tower, without the head.

    Args:
        encoded: the objective's views.
        workers: loader processes.
        model: the model that is trained.
        pairs: the images.
        processes: the processes of the run. Each encodes a share of the data; all get the result.
    """

    encoded: Mapping[str, Encoded]
    workers: int
    model: DualEncoder
    pairs: Pairs
    processes: Processes

    def __post_init__(self) -> None:
        self.names = list(self.encoded)[:2]
        encoded = {name: self.encoded[name] for name in self.names}
        self.inputs = TowerInputs(self.model, IndexedFeed(self.pairs), self.processes, encoded, augmented=True)

    def figures(self) -> dict[str, float]:
        """Return recalls, alignment and uniformity."""
        return self._scores().figures()

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, under this model name."""
        with evaluating(self.model):
            features = encode_shared(self.pairs.images, self.model.encode_image, self.processes).cpu()
        return self._scores().result(name, self.pairs, features, self.pairs.images)

    def _scores(self) -> ViewScores:
        first, second = self._features()
        ranks = retrieval_ranks(first, second, torch.arange(len(first)))
        both = torch.stack([ranks.of_images, ranks.of_texts])[:, None]
        hits = (both <= torch.tensor(KS)[:, None]).double().mean(0)
        queries = Queries(np.arange(len(first)))
        recalls = {f"image_view_recall@{k}": Column(queries, hits[row].numpy()) for row, k in enumerate(KS)}
        return ViewScores("image", recalls, alignment(first, second), first)

    @torch.no_grad()
    def _features(self) -> tuple[Tensor, Tensor]:
        made: dict[str, list[Tensor]] = {name: [] for name in self.names}
        total = len(self.pairs.images)
        with evaluating(self.model):
            for batch in self.inputs.batches(self._samples(), self.workers):
                for name in self.names:
                    encoder = self.inputs.encoders[name]
                    features = encoder(send(batch.inputs[name], self.model.device)).float()
                    made[name].append(features if encoder.of_trunk else F.normalize(features, dim=-1))
            head = self.model.view_head("image")
            gathered = [self.processes.gather(torch.cat(made[name]), total) for name in self.names]
            first, second = (through_head(features, head).cpu() for features in gathered)
        return finite(self.pairs.name, first, second)

    def _samples(self) -> Iterator[list[Sample]]:
        rows = range(len(self.pairs.images))[self.processes.share(len(self.pairs.images))]
        for start in range(0, len(rows), BATCH):
            yield [Sample(0, row, int(self.pairs.captions_of_image[row][0])) for row in rows[start : start + BATCH]]
