"""Statistics of the features of a batch: retrieval accuracy within the batch, and mean cosines."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

QUERIES = 128
"""Number of pairs used as queries: enough to measure accuracy, at little cost compared with the towers."""


def batch_statistics(
    first: Float[Tensor, "G D"],
    second: Float[Tensor, "G D"],
    image_ids: Int[Tensor, " G"],
    caption_ids: Int[Tensor, " G"],
    sides: tuple[str, str] = ("image", "text"),
) -> dict[str, float]:
    """Compute retrieval accuracies and mean cosines for one global batch of G pairs.

    Args:
        first: unit-length features of the images.
        second: unit-length features of the captions, in the order of the images.
        image_ids: image ID of each pair.
        caption_ids: caption ID of each pair.
        sides: names that replace "image" and "text" in the names of the statistics.

    Returns:
        image_accuracy: share of the first 128 images whose most similar caption is correct. A caption is correct if its
            pair has the same image ID or the same caption ID as the image.
        text_accuracy: the same share, with the first 128 captions as queries.
        positive_cosine: mean cosine between the image and the caption of a pair.
        negative_cosine: mean cosine between an image and the caption of another pair.
        image_cosine: mean cosine between the images of two pairs.
        text_cosine: mean cosine between the captions of two pairs.

    Example:
        >>> unit = torch.eye(3)
        >>> batch_statistics(unit, unit, torch.arange(3), torch.arange(3))["image_accuracy"]
        1.0
    """
    count = len(first)
    one, two = first.detach().float(), second.detach().float()
    queries = slice(0, min(count, QUERIES))
    statistics = {}
    for side, features, others in ((sides[0], one, two), (sides[1], two, one)):
        answers = (features[queries] @ others.T).argmax(dim=1)
        right = (image_ids[queries] == image_ids[answers]) | (caption_ids[queries] == caption_ids[answers])
        statistics[f"{side}_accuracy"] = right.float().mean()
    pairs = max(1, count * (count - 1))
    sums = [features.sum(dim=0) for features in (one, two)]
    positive = (one * two).sum()
    statistics["positive_cosine"] = positive / count
    # The sum of all G × G cosines is the product of the sums, so the G × G matrix is not needed.
    statistics["negative_cosine"] = (sums[0] @ sums[1] - positive) / pairs
    for side, features, total in zip(sides, (one, two), sums, strict=True):
        statistics[f"{side}_cosine"] = (total @ total - features.square().sum()) / pairs
    values = torch.stack(list(statistics.values())).tolist()  # only one transfer from the device
    return {name: round(value, 6) for name, value in zip(statistics, values, strict=True)}
