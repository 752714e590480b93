"""Views: an image's, or a text's, positive is another view of itself (SimCLR, SimCSE)."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.data import Pairs, Policy, TextSafe, TextView
from clipkit.models import DualEncoder
from clipkit.recipe import ImageViewsRecipe, LossRecipe, TextViewsRecipe, steps_of
from clipkit.training.objectives.loss_sum import chance_of, loss_sum
from clipkit.training.objectives.objective import Encoded, Gathered, Objective, Scalars, Value


def image_views(recipe: ImageViewsRecipe, seed: int, model: DualEncoder, pairs: Pairs, batch_size: int) -> Objective:
    """`image_view_1`, `image_view_2`…: a policy each."""
    preprocess, head = model.image.preprocess, model.view_head("image")
    safe = TextSafe(pairs) if recipe.safe else None
    encoded = {
        f"image_view_{view}": Encoded(
            "image",
            Policy(steps_of(policy), preprocess.image_size, preprocess.of_crop, preprocess, seed, view, safe),
            of_trunk=head is not None,
        )
        for view, policy in enumerate(recipe.policies, 1)
    }
    other_ids = "image_ids" if recipe.positives == "image" else "caption_ids"
    value = value_of_views(list(encoded), recipe.loss, recipe.temperature, head, ("image_ids", other_ids))
    return _objective(encoded, value, recipe.loss, head, batch_size)


def text_views(recipe: TextViewsRecipe, seed: int, model: DualEncoder, pairs: Pairs, batch_size: int) -> Objective:
    """`text_view_1`, `text_view_2`…: a policy each.

    Raises:
        DataError: the data lacks what a policy needs.
    """
    head = model.view_head("text")
    encoded = {
        f"text_view_{view}": Encoded(
            "text", TextView(policy, pairs, recipe.crop, seed, view), of_trunk=head is not None
        )
        for view, policy in enumerate(recipe.policies, 1)
    }
    other_ids = "caption_ids" if recipe.positives == "caption" else "image_ids"
    value = value_of_views(list(encoded), recipe.loss, recipe.temperature, head, ("caption_ids", other_ids))
    return _objective(encoded, value, recipe.loss, head, batch_size)


def _objective(
    encoded: dict[str, Encoded], value: Value, loss: LossRecipe, head: nn.Module | None, batch_size: int
) -> Objective:
    one, two, *_ = encoded

    def compared(gathered: Gathered) -> tuple[Tensor, Tensor]:
        return through_head(gathered[one], head), through_head(gathered[two], head)

    return Objective("views", encoded, value, chance_of(loss.terms, batch_size), compared, sides=(one, two))


def value_of_views(
    names: list[str], loss: LossRecipe, temperature: float, head: nn.Module | None, ids: tuple[str, str]
) -> Value:
    """The mean of a loss over all pairs of views.

    Args:
        names: of the views' features.
        loss: between two views.
        temperature: 1 / scale.
        head: from the trunk's output to what the loss sees; it sees the whole batch at once.
        ids: names of the ids by which samples are positives of each other.
    """
    between = loss_sum(loss.terms)
    pairs = list(combinations(names, 2))

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        views = {name: through_head(gathered[name], head) for name in names}
        scale = {"scale": torch.tensor(1 / temperature, device=gathered[names[0]].device)}
        who = {"image_ids": gathered[ids[0]], "caption_ids": gathered[ids[1]]}
        first, *others = [
            between({"image_features": views[one], "text_features": views[two], **who}, scale, rows)
            for one, two in pairs
        ]
        return sum(others, first) / len(pairs)

    return value


def through_head(features: Tensor, head: nn.Module | None) -> Tensor:
    """What the loss sees: unit length."""
    return features if head is None else F.normalize(head(features), dim=-1)
