"""Validation by text views: find a held-out caption, with another wording of this caption as the query."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data import Pairs, Sample, TextView
from clipkit.embedding.shared import encode_shared, evaluating
from clipkit.evaluation.figures import Column, Queries
from clipkit.metrics import alignment, retrieval_ranks
from clipkit.models import DualEncoder
from clipkit.models.devices import is_accelerator
from clipkit.models.encode import Through, encode_strings, tower_features, trunk_features
from clipkit.processes import Processes
from clipkit.training.measures.captions import finite
from clipkit.training.measures.views import BATCH, KS, ViewScores
from clipkit.training.objectives.views import through_head


class TextViewValidation:
    """Validation by text-to-text retrieval: find the first caption of each image, with other wordings as queries.

    The queries are the other captions of the image. If there are none, the query is a paraphrase of the first caption.
    Without a paraphrase, the query is a crop of this caption (some consecutive words).

    Args:
        crop: function that crops a caption.
        model: model that is trained.
        pairs: data with the held-out captions.
        processes: processes of the run, each of which encodes a share of the data.
    """

    def __init__(self, crop: TextView, model: DualEncoder, pairs: Pairs, processes: Processes) -> None:
        self.model = model
        self.pairs = pairs
        self.processes = processes
        self.captions: list[str] = []
        self.wordings: list[str] = []
        targets: list[int] = []
        for image, rows in enumerate(pairs.captions_of_image):
            first, others = int(rows[0]), rows[1:]
            self.captions.append(pairs.captions[first])
            wordings = [pairs.captions[row] for row in others]
            if not wordings and pairs.paraphrases is not None and pairs.paraphrases[first]:
                wordings = [pairs.paraphrases[first]]
            self.wordings += wordings or [crop(Sample(0, image, first))]
            targets += [image] * max(1, len(wordings))
        self.targets = torch.tensor(targets)
        """Position of the caption that each wording must find."""

    def figures(self) -> dict[str, float]:
        """Return recalls, alignment and uniformity, by the name of the metric."""
        return self._scores().figures()

    def result(self, name: str) -> dict[str, Any]:
        """Return the complete result for results.json, with `name` as the name of the model."""
        with evaluating(self.model):
            features = F.normalize(self._encoded(self.captions, tower_features), dim=-1).cpu()
        return self._scores().result(name, self.pairs, features, self.captions)

    def _scores(self) -> ViewScores:
        captions, wordings = self._features()
        rank = retrieval_ranks(captions, wordings, self.targets).of_texts
        queries = Queries(self.targets.numpy(), among=len(captions))
        recalls = {f"text_view_recall@{k}": Column(queries, (rank <= k).double().numpy()) for k in KS}
        return ViewScores("text", recalls, alignment(captions[self.targets], wordings), captions)

    @torch.no_grad()
    def _features(self) -> tuple[Tensor, Tensor]:
        head = self.model.view_head("text")
        through = tower_features if head is None else trunk_features
        with evaluating(self.model):
            both = [self._encoded(texts, through) for texts in (self.captions, self.wordings)]
            if head is None:
                both = [F.normalize(features, dim=-1) for features in both]
            captions, wordings = (through_head(features, head).cpu() for features in both)
        return finite(self.pairs.name, captions, wordings)

    def _encoded(self, texts: list[str], through: Through) -> Tensor:
        def encode(share: Sequence[str]) -> Tensor:
            batch = None if is_accelerator(self.model.device) else BATCH
            return encode_strings(self.model.text, share, through, batch, self.model.device)

        return encode_shared(texts, encode, self.processes)
