"""Validation by image views: find a view of a held-out image, with another view of this image as the query."""

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
    """Validation by retrieval between two augmented views of held-out images, in both directions.

    The two views use the first two policies of the recipe, and are those of the first epoch. The metrics use the
    features after the projection head for views, as the loss does. Nearest neighbors and map use the features of the
    tower, without this head.

    Args:
        encoded: views of the objective, by the name of their features.
        workers: number of loader processes.
        model: model that is trained.
        pairs: data with the held-out images.
        processes: processes of the run, each of which encodes a share of the data.
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
        """Return recalls, alignment and uniformity, by the name of the metric."""
        return self._scores().figures()

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, with `name` as the name of the model."""
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
