"""Objective captions: the positive of an image is its caption."""

from collections.abc import Mapping

from clipkit.catalogue import Need
from clipkit.data import Pairs, Policy, TextSafe, TextView, WrongCaption, checked_negatives
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe, Term
from clipkit.training.folder.run_log import RunLog
from clipkit.training.measures.captions import CaptionValidation
from clipkit.training.objectives.loss_sum import chance_of, loss_sum
from clipkit.training.objectives.objective import Encoded, Objective
from clipkit.training.objectives.teacher import Teacher
from clipkit.training.stored.settings import Storing


def objective(
    term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]
) -> Objective:
    """Return the objective that compares images with captions.

    If the loss needs hard negative captions, the objective also compares images with them.

    Raises:
        DataError: the loss needs hard negative captions, but the data has none.
    """
    preprocess = model.image.preprocess
    seed, safe = recipe.train.seed, TextSafe(pairs) if term.safe else None
    augment = Policy(term.augmentation, preprocess.image_size, preprocess.of_crop, preprocess, seed, safe=safe)
    encoded = {"image_features": Encoded("image", augment), "text_features": Encoded("text", TextView("same", pairs))}
    if Need.NEGATIVES in term.needs:
        encoded["negative_text_features"] = Encoded("text", WrongCaption(checked_negatives(pairs)))
    return Objective(
        encoded,
        loss_sum(term.losses, teachers),
        chance_of(term.losses, recipe.train.batch_size),
        compared=lambda gathered: (gathered["image_features"], gathered["text_features"]),
        sides=("image", "text"),
    )


def measure(term: Term, recipe: Recipe, model: DualEncoder, pairs: Pairs, processes: Processes) -> CaptionValidation:
    """Return an object that validates the model by retrieval on held-out pairs."""
    evaluations = recipe.train.epochs // recipe.eval.every_epochs + 1
    storing = None
    if recipe.data.store is not None:
        count = max(len(pairs.images), len(pairs.captions))
        storing = Storing(recipe.data.store, processes, evaluations * count, log=RunLog(processes.is_main).info)
    return CaptionValidation(model, pairs, processes, recipe.train.batch_size, storing)
