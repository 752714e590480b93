"""Validation by translations: find a held-out caption, with its translation as the query."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.data import Pairs, TextView
from clipkit.embedding.shared import evaluating
from clipkit.models import DualEncoder
from clipkit.models.encode import tower_features
from clipkit.processes import Processes
from clipkit.training.measures.captions import finite
from clipkit.training.measures.text_views import TextViewValidation


class TranslationValidation(TextViewValidation):
    """Validation by retrieval of captions, with their translations as queries.

    The teacher encodes the captions, and the model that is trained encodes the translations.

    Args:
        teacher_features: (M, D) unit-length features of all captions, computed by the teacher.
        translation: function that returns the translation of a caption.
        model: model that is trained.
        pairs: data with the held-out captions and translations.
        processes: processes of the run, each of which encodes a share of the data.
    """

    def __init__(
        self,
        teacher_features: Float[Tensor, "M D"],
        translation: TextView,
        model: DualEncoder,
        pairs: Pairs,
        processes: Processes,
    ) -> None:
        super().__init__(translation, model, pairs, processes)
        first = torch.tensor([int(rows[0]) for rows in pairs.captions_of_image])
        self.teacher_features = teacher_features[first]

    @torch.no_grad()
    def _features(self) -> tuple[Tensor, Tensor]:
        with evaluating(self.model):
            wordings = F.normalize(self._encoded(self.wordings, tower_features), dim=-1).cpu()
        return finite(self.pairs.name, self.teacher_features, wordings)
