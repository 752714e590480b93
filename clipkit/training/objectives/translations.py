"""Objective translations: a text tower learns a new language from captions and their translations, without images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from clipkit.data import Pairs, TextView
from clipkit.errors import RecipeError
from clipkit.models import DualEncoder
from clipkit.models.encode import encode_strings, tower_features
from clipkit.processes import Processes
from clipkit.recipe import Recipe, Term, TranslationsTerm
from clipkit.training.measures.translations import TranslationValidation
from clipkit.training.objectives.objective import Encoded, Gathered, Objective, Scalars
from clipkit.training.objectives.teacher import Teacher, teachers_of

_NAMES = ("text_features", "translation_features")


def objective(
    term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]
) -> Objective:
    r"""Return the objective that moves a caption and its translation toward the teacher's feature of the caption.

    .. math:: L = \frac{1}{2G} \sum_i [(1 - x_i \cdot t_i) + (1 - y_i \cdot t_i)]

    x_i is the model's feature of caption i, y_i is the model's feature of its translation, and t_i is the teacher's
    feature of caption i. All features have unit length. Sources: Reimers and Gurevych 2020, "Making Monolingual
    Sentence Embeddings Multilingual using Knowledge Distillation"; Carlsson et al. 2022, M-CLIP. Both papers use the
    squared distance, which is twice the cosine distance for unit-length features.

    Raises:
        DataError: the data has no translations.
        RecipeError: the text tower and the teacher have features of different dimensions.
    """
    assert isinstance(term, TranslationsTerm)
    teacher = teachers[term.teacher]
    width = encode_strings(model.text, ["a"], tower_features, 1, model.device).shape[1]
    if width != (needed := teacher.text_features.shape[1]):
        advice = f"set model.embed_dim: {needed}" if recipe.model.name is None else "use another teacher"
        raise RecipeError(
            f"translations.teacher {term.teacher} has text features of {needed} dimensions, but the text tower has "
            f"{width}; {advice}"
        )
    encoded = {
        "text_features": Encoded("text", TextView("same", pairs)),
        "translation_features": Encoded("text", TextView("paraphrase", pairs)),
    }

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        features = [gathered[name][rows] for name in _NAMES]
        target = teacher(gathered)["teacher_text_features"][rows]
        dtype = torch.promote_types(features[0].dtype, torch.float32)
        cosines = torch.stack([torch.linalg.vecdot(each.to(dtype), target.to(dtype)) for each in features])
        return (1 - cosines).sum() / (2 * len(gathered["text_features"]))

    def compared(gathered: Gathered) -> tuple[Tensor, Tensor]:
        return gathered["translation_features"], teacher(gathered)["teacher_text_features"]

    return Objective(encoded, value, None, compared, sides=("translation", "caption"))


def measure(
    term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes
) -> TranslationValidation:
    """Return an object that validates the model by retrieval of held-out captions, with translations as queries."""
    assert isinstance(term, TranslationsTerm)
    teacher = teachers_of([term.teacher], pairs, processes)[term.teacher]
    return TranslationValidation(teacher.text_features, TextView("paraphrase", pairs), model, pairs, processes)
