"""Captions: an image's positive is its caption."""

from collections.abc import Mapping

from clipkit.catalogue import Need
from clipkit.data import Pairs, Policy, TextSafe, TextView, WrongCaption, checked_negatives
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe
from clipkit.training.objectives.loss_sum import chance_of, loss_sum
from clipkit.training.objectives.objective import Encoded, Objective
from clipkit.training.objectives.teacher import Teacher


def captions(recipe: Recipe, model: DualEncoder, pairs: Pairs, teachers: Mapping[str, Teacher]) -> Objective:
    """`image_features` and `text_features`, and `negative_text_features` where the loss asks for them.

    Raises:
        DataError: the data lacks wrong captions.
    """
    preprocess = model.image.preprocess
    augment = Policy(
        recipe.data.augmentation,
        preprocess.image_size,
        preprocess.of_crop,
        preprocess,
        recipe.train.seed,
        safe=TextSafe(pairs) if recipe.data.safe else None,
    )
    encoded = {
        "image_features": Encoded("image", augment),
        "text_features": Encoded("text", TextView("same", pairs)),
    }
    if Need.NEGATIVES in recipe.loss.needs:
        encoded["negative_text_features"] = Encoded("text", WrongCaption(checked_negatives(pairs)))
    return Objective(
        "captions",
        encoded,
        loss_sum(recipe.loss.terms, teachers),
        chance_of(recipe.loss.terms, recipe.train.batch_size),
        compared=lambda gathered: (gathered["image_features"], gathered["text_features"]),
        sides=("image", "text"),
    )
