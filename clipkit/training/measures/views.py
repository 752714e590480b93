"""The validation pairs during a run: views of images, views of captions."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data import IndexedFeed, Pairs, Sample, TextView
from clipkit.evaluation import versions
from clipkit.evaluation.figures import Column, Queries, figure, figures
from clipkit.evaluation.neighbourhood import embedding_map, neighbour_examples
from clipkit.evaluation.result import INTERVAL
from clipkit.metrics import alignment, retrieval_ranks, uniformity
from clipkit.models import DualEncoder
from clipkit.models.encode import encode_strings
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.inputs import TowerInputs, evaluating
from clipkit.training.measures.captions import finite
from clipkit.training.objectives.objective import Encoded
from clipkit.training.objectives.views import through_head
from clipkit.training.step import Encoder

_KS = (1, 5, 10)
_BATCH = 64


class ImageViewValidation:
    """Of held-out images, one view is to find the other among those of all, both ways.

    The views are the first two of the recipe, as in its first epoch. Recall, alignment and uniformity are of what the
    loss sees, so behind the head; neighbours and map are of the tower's own features, which stay.

    Args:
        encoded: the objective's views.
        recipe: the run's.
        model: the model that is trained.
        pairs: the images.
        processes: each encodes its share; all get the figures.
    """

    def __init__(
        self,
        encoded: dict[str, Encoded],
        recipe: Recipe,
        model: DualEncoder,
        pairs: Pairs,
        processes: Processes,
    ) -> None:
        self.names = list(encoded)[:2]
        self.model = model
        self.pairs = pairs
        self.processes = processes
        self.workers = recipe.data.workers
        self.inputs = TowerInputs(
            model, IndexedFeed(pairs), processes, {name: encoded[name] for name in self.names}, augmented=True
        )

    def figures(self) -> dict[str, float]:
        """Recalls, alignment, uniformity."""
        return _figures("image", *self._columns())

    def result(self, name: str) -> dict[str, Any]:
        """All that results.json holds of them, under this model name."""
        share = self.pairs.images[self.processes.share(len(self.pairs.images))]
        with evaluating(self.model):
            own = self.model.encode_image(share).to(self.model.device)
        features = self.processes.gather(own, len(self.pairs.images)).cpu()
        items = self.pairs.images
        return _result("image", name, self.pairs, len(items), self._columns()) | {
            "examples": neighbour_examples(features, items, "image"),
            "map": embedding_map(features, items, "image"),
        }

    def _columns(self) -> tuple[dict[str, Column], Tensor, Tensor]:
        first, second = self._features()
        ranks = retrieval_ranks(first, second, torch.arange(len(first)))
        who = Queries(np.arange(len(first)))
        found = (torch.stack([ranks.of_images, ranks.of_texts])[:, None] <= torch.tensor(_KS)[:, None]).double().mean(0)
        columns = {f"image_view_recall@{k}": Column(who, found[row].numpy()) for row, k in enumerate(_KS)}
        return columns, alignment(first, second), first

    @torch.no_grad()
    def _features(self) -> tuple[Tensor, Tensor]:
        made: dict[str, list[Tensor]] = {name: [] for name in self.names}
        total = len(self.pairs.images)
        with evaluating(self.model):
            for batch in self.inputs.batches(self._samples(), self.workers):
                for name in self.names:
                    encoder = self.inputs.encoders[name]
                    features = encoder(batch.inputs[name]).float()
                    made[name].append(features if encoder.of_trunk else torch.nn.functional.normalize(features, dim=-1))
            head = self.model.view_head("image")
            gathered = [self.processes.gather(torch.cat(made[name]), total) for name in self.names]
            first, second = (through_head(own, head).cpu() for own in gathered)
        return finite(self.pairs.name, first, second)

    def _samples(self) -> Iterator[list[Sample]]:
        rows = range(len(self.pairs.images))[self.processes.share(len(self.pairs.images))]
        for start in range(0, len(rows), _BATCH):
            yield [Sample(0, row, int(self.pairs.captions_of_image[row][0])) for row in rows[start : start + _BATCH]]


class TextViewValidation:
    """Another wording is to find its caption among those of all images.

    Of each image they are its other captions where there are any, else its paraphrase, else a crop of its caption.

    Args:
        recipe: the run's.
        model: the model that is trained.
        pairs: the captions.
        processes: each encodes its share; all get the figures.
    """

    def __init__(self, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes) -> None:
        assert recipe.text_views is not None
        self.model = model
        self.pairs = pairs
        self.processes = processes
        crop = TextView("crop", pairs, recipe.text_views.crop, recipe.train.seed, 1)
        self.captions: list[str] = []
        self.wordings: list[str] = []
        of: list[int] = []
        for image, rows in enumerate(pairs.captions_of_image):
            first, others = int(rows[0]), rows[1:]
            self.captions.append(pairs.captions[first])
            own = [pairs.captions[row] for row in others]
            if not own and pairs.paraphrases is not None and pairs.paraphrases[first]:
                own = [pairs.paraphrases[first]]
            self.wordings += own or [crop(Sample(0, image, first))]
            of += [image] * max(1, len(own))
        self.of = torch.tensor(of)

    def figures(self) -> dict[str, float]:
        """Recalls, alignment, uniformity."""
        return _figures("text", *self._columns())

    def result(self, name: str) -> dict[str, Any]:
        """All that results.json holds of them, under this model name."""
        with evaluating(self.model):
            features = torch.nn.functional.normalize(
                self._encoded(self.captions, Encoder(self.model.text)), dim=-1
            ).cpu()
        return _result("text", name, self.pairs, len(self.captions), self._columns()) | {
            "examples": neighbour_examples(features, self.captions, "text"),
            "map": embedding_map(features, self.captions, "text"),
        }

    def _columns(self) -> tuple[dict[str, Column], Tensor, Tensor]:
        captions, wordings = self._features()
        rank = retrieval_ranks(captions, wordings, self.of).of_texts
        who = Queries(self.of.numpy(), among=len(captions))
        columns = {f"text_view_recall@{k}": Column(who, (rank <= k).double().numpy()) for k in _KS}
        return columns, alignment(captions[self.of], wordings), captions

    @torch.no_grad()
    def _features(self) -> tuple[Tensor, Tensor]:
        head = self.model.view_head("text")
        encoder = Encoder(self.model.text, of_trunk=head is not None)
        with evaluating(self.model):
            both = [self._encoded(texts, encoder) for texts in (self.captions, self.wordings)]
            if head is None:
                both = [torch.nn.functional.normalize(own, dim=-1) for own in both]
            captions, wordings = (through_head(own, head).cpu() for own in both)
        return finite(self.pairs.name, captions, wordings)

    def _encoded(self, texts: list[str], encoder: Encoder) -> Tensor:
        share = texts[self.processes.share(len(texts))]
        rows = encode_strings(self.model.text, share, encoder, _BATCH, self.model.device)
        return self.processes.gather(rows.to(self.model.device), len(texts))


def _figures(kind: str, columns: dict[str, Column], aligned: Tensor, spread: Tensor) -> dict[str, float]:
    found = {name: column.value for name, column in columns.items()}
    return found | {f"{kind}_alignment": aligned.mean().item(), f"{kind}_uniformity": uniformity(spread)}


def _result(
    kind: str, name: str, pairs: Pairs, among: int, columns: tuple[dict[str, Column], Tensor, Tensor]
) -> dict[str, Any]:
    recalls, _, _ = columns
    plain = _figures(kind, *columns)
    metrics = figures(recalls, {f"{kind}_view_recall@{k}": min(1.0, k / among) for k in _KS})
    metrics |= {name: figure(value, None, None) for name, value in plain.items() if name not in metrics}
    return {
        "task": "views",
        "model": name,
        "data": {
            "name": pairs.name,
            "images": len(pairs.images),
            "captions": len(pairs.captions) * pairs.has_captions,
            "sha256": pairs.fingerprint,
        },
        "metrics": metrics,
        "settings": dict(INTERVAL),
        "versions": versions(),
        "seconds": 0.0,
    }
