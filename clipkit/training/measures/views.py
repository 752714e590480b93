"""Common part of the evaluations of image views and text views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipkit.data import Pairs
from clipkit.evaluation import build_result
from clipkit.evaluation.examples import Kind
from clipkit.evaluation.figures import Column, figure, figures
from clipkit.evaluation.neighborhood import embedding_map, neighbor_examples
from clipkit.metrics import uniformity

KS = (1, 5, 10)
BATCH = 64


@dataclass(frozen=True)
class ViewScores:
    """Scores of the retrieval between views of images, or between views of texts.

    Attributes:
        side: `image` or `text`.
        recalls: name of the metric -> value for each query.
        alignment: (N,) squared distance between the two views of each sample.
        spread: (N, D) features for the metric uniformity.
    """

    side: Kind
    recalls: Mapping[str, Column]
    alignment: Tensor
    spread: Tensor

    def figures(self) -> dict[str, float]:
        """Return the metric values by name, averaged over the queries."""
        values = {name: column.value for name, column in self.recalls.items()}
        alignment, spread = self.alignment.mean().item(), uniformity(self.spread)
        return values | {f"{self.side}_alignment": alignment, f"{self.side}_uniformity": spread}

    def result(self, name: str, pairs: Pairs, features: Tensor, items: Sequence[Any]) -> dict[str, Any]:
        """Return the scores as a result, with examples of nearest neighbors and a map of the features.

        Args:
            name: name of the model.
            pairs: the held-out data.
            features: (N, D) features from the tower, without a projection head for views.
            items: the N images or captions that the features belong to.
        """
        metrics = figures(self.recalls, {f"{self.side}_view_recall@{k}": min(1.0, k / len(items)) for k in KS})
        metrics |= {name: figure(value, None, None) for name, value in self.figures().items() if name not in metrics}
        captions = len(pairs.captions) * pairs.has_captions
        data = {"name": pairs.name, "images": len(pairs.images), "captions": captions, "sha256": pairs.fingerprint}
        examples = neighbor_examples(features, items, self.side)
        positions = embedding_map(features, items, self.side)
        return dict(build_result("views", name, data, metrics, examples=examples, map=positions))
