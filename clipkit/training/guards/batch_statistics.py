"""Statistics of a batch's features: retrieval accuracy within the batch, and mean cosines."""

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
    """Compute statistics of one global batch, without the G × G matrix.

    Args:
        first: features of unit length, for example of images.
        second: features of their pairs.
        image_ids: IDs of the images; a pair with the same image or caption also counts as correct.
        caption_ids: IDs of the captions.
        sides: names of the two sides.

    Returns:
        `image_accuracy`: share of the first 128 pairs whose image is most similar to one of its own captions, among
        all G captions; `text_accuracy`: the same for the captions of these pairs, among all G images;
        `positive_cosine`: mean cosine of the pairs; `negative_cosine`: mean cosine of an image and another pair's
        caption; `image_cosine`, `text_cosine`: mean cosine of two images, or of two captions. `sides` replaces image
        and text in these names.

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
    # The sum over all pairs is the product of the sums.
    statistics["negative_cosine"] = (sums[0] @ sums[1] - positive) / pairs
    for side, features, total in zip(sides, (one, two), sums, strict=True):
        statistics[f"{side}_cosine"] = (total @ total - features.square().sum()) / pairs
    values = torch.stack(list(statistics.values())).tolist()  # only one transfer from the device
    return {name: round(value, 6) for name, value in zip(statistics, values, strict=True)}
