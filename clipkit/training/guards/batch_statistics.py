"""What a batch's features look like: how well pairs are told apart, and whether everything looks the same."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ASKED = 128
"""Pairs that look for each other in the whole batch: enough for an accuracy, and next to nothing beside the towers."""


def batch_statistics(
    first: Float[Tensor, "G D"],
    second: Float[Tensor, "G D"],
    image_ids: Int[Tensor, " G"],
    caption_ids: Int[Tensor, " G"],
    sides: tuple[str, str] = ("image", "text"),
) -> dict[str, float]:
    """Figures of one global batch, none of which needs the G × G matrix.

    Args:
        first: features of unit length, as of images.
        second: those of their pairs.
        image_ids: with the same one, or the same caption id, another pair is no wrong answer.
        caption_ids: likewise.
        sides: what the two are called.

    Returns:
        `image_accuracy`: share of the first 128 pairs whose image is most similar to a caption of its own, among
        all G captions; `text_accuracy` the other way round; `positive_cosine`: mean cosine of the pairs;
        `negative_cosine`: of an image and another pair's caption; `image_cosine`, `text_cosine`: of two different
        images, or captions. With other `sides`, their names in place of image and text.

    Example:
        >>> unit = torch.eye(3)
        >>> batch_statistics(unit, unit, torch.arange(3), torch.arange(3))["image_accuracy"]
        1.0
    """
    count = len(first)
    one, two = first.detach().float(), second.detach().float()
    asked = slice(0, min(count, _ASKED))
    found = {}
    for side, own, other in ((sides[0], one, two), (sides[1], two, one)):
        answers = (own[asked] @ other.T).argmax(dim=1)
        right = (image_ids[asked] == image_ids[answers]) | (caption_ids[asked] == caption_ids[answers])
        found[f"{side}_accuracy"] = right.float().mean()
    pairs = max(1, count * (count - 1))
    sums = [own.sum(dim=0) for own in (one, two)]
    positive = (one * two).sum()
    found["positive_cosine"] = positive / count
    # The sum over all pairs is the product of the sums.
    found["negative_cosine"] = (sums[0] @ sums[1] - positive) / pairs
    for side, own, total in zip(sides, (one, two), sums, strict=True):
        found[f"{side}_cosine"] = (total @ total - own.square().sum()) / pairs
    values = torch.stack(list(found.values())).tolist()  # from the device at once
    return {name: round(value, 6) for name, value in zip(found, values, strict=True)}
