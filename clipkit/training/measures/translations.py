"""Validation by translations: retrieval of a held-out caption, as the teacher encodes it, with its translation."""

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
    """Validation by retrieval of the teacher's caption features, with the model's features of translations as queries.

    Args:
        teacher_features: (M, D) unit-length features of all captions by the teacher.
        translation: function that returns the translation of a caption; every caption has one.
        model: the model that is trained.
        pairs: the captions.
        processes: the processes of the run. Each encodes a share of the data; all get the result.
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
