"""Common part of the objectives on image views and text views."""

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.recipe import LossRecipe
from clipkit.training.objectives.loss_sum import chance_of, loss_sum
from clipkit.training.objectives.objective import Encoded, Gathered, Objective, Scalars, Value


def objective_of_views(
    encoded: Mapping[str, Encoded],
    loss: LossRecipe,
    temperature: float,
    head: nn.Module | None,
    ids: tuple[str, str],
    batch_size: int,
) -> Objective:
    """Return the objective that is the mean loss over all pairs of views.

    Accuracy is logged only for the first two views.

    Args:
        encoded: the views: feature name -> what encodes the view.
        loss: loss that compares two views.
        temperature: fixed temperature, 1 / scale.
        head: projection head, applied to the trunk's output. None: the loss uses the features of the tower.
        ids: names of the two kinds of IDs that define positives, see `value_of_views`.
        batch_size: number of samples in a global batch.
    """
    one, two, *_ = encoded

    def compared(gathered: Gathered) -> tuple[Tensor, Tensor]:
        return through_head(gathered[one], head), through_head(gathered[two], head)

    value = value_of_views(list(encoded), loss, temperature, head, ids)
    return Objective(encoded, value, chance_of(loss.terms, batch_size), compared, sides=(one, two))


def value_of_views(
    names: list[str], loss: LossRecipe, temperature: float, head: nn.Module | None, ids: tuple[str, str]
) -> Value:
    """Return a function that computes the mean of a loss over all pairs of views.

    Args:
        names: names of the features of the views.
        loss: loss that compares two views.
        temperature: fixed temperature, 1 / scale.
        head: projection head between the trunk and the loss; None: the loss uses the features of the tower.
        ids: names of two kinds of IDs, e.g. image_ids and caption_ids. Two samples are positives if one of these IDs is
            equal.
    """
    loss_of_two = loss_sum(loss.terms)
    pairs = list(combinations(names, 2))

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        views = {name: through_head(gathered[name], head) for name in names}
        scale = {"scale": torch.tensor(1 / temperature, device=gathered[names[0]].device)}
        shared = {"image_ids": gathered[ids[0]], "caption_ids": gathered[ids[1]]}
        first, *others = [
            loss_of_two({"image_features": views[one], "text_features": views[two], **shared}, scale, rows)
            for one, two in pairs
        ]
        return sum(others, first) / len(pairs)

    return value


def through_head(features: Tensor, head: nn.Module | None) -> Tensor:
    """Apply a projection head and normalize the result; without a head, return the features unchanged."""
    return features if head is None else F.normalize(head(features), dim=-1)
