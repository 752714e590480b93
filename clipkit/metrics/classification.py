"""Classification metrics, computed from the scores of classes. An image has one label or several labels."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays


@takes_arrays
def classification(
    scores: Float[Tensor, "N C"], labels: Int[Tensor, " N"] | Bool[Tensor, "N C"]
) -> dict[str, float | None]:
    """Return accuracies for one label per image, or the mean average precision for several labels per image.

    Names and definitions follow CLIP_benchmark 1.6. Ties go to the lower index.

    Args:
        scores: score of each class for each image, higher for more probable classes.
        labels: class index of each image; or a mask (True: the image belongs to the class).

    Returns:
        With class indices: `acc1`, `acc5` (None for fewer than five classes), and `mean_per_class_recall`, the mean
        over the classes in `labels`. With a mask: `mean_average_precision`, in which a class without images has a value
        of 0.

    Raises:
        ValueError: a score is NaN, or the labels do not fit the scores.

    Example:
        >>> classification(torch.eye(3), torch.tensor([0, 1, 1]))["acc1"]
        0.6666666666666666
    """
    if scores.isnan().any():
        raise ValueError("scores contain NaN, so classes cannot be ranked; give scores without NaN")
    expected = scores.shape if labels.ndim == 2 else scores.shape[:1]
    if not len(scores) or labels.shape != expected:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit scores of shape {tuple(scores.shape)}; give one label "
            "per image, or a mask of the same shape as the scores"
        )
    if labels.ndim == 1 and not (0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]):
        raise ValueError(
            f"labels range from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} classes; give "
            f"labels from 0 to {scores.shape[1] - 1}"
        )
    if labels.ndim == 2:
        return {"mean_average_precision": average_precision(scores, labels).mean().item()}
    ranks = true_label_ranks(scores, labels)
    correct = (ranks == 1).double()
    per_class = [correct[labels == label].mean().item() for label in labels.unique()]
    return {
        "acc1": correct.mean().item(),
        "acc5": (ranks <= 5).double().mean().item() if scores.shape[1] >= 5 else None,
        "mean_per_class_recall": sum(per_class) / len(per_class),
    }


@takes_arrays
def true_label_ranks(scores: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Return the rank of the true class of each image, from 1. Ties go to the lower class index."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    target = labels[:, None]
    true_score = scores.gather(1, target)
    index = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > true_score) | ((scores == true_score) & (index < target))
    return 1 + before.sum(dim=1)


@takes_arrays
def average_precision(scores: Float[Tensor, "N C"], labels: Bool[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """Return the average precision of each class: the mean of the precisions at the ranks of its images.

    The average precision of a class without images is 0.

    Args:
        scores: score of each class for each image.
        labels: mask (True: the image belongs to the class).
    """
    _, classes, precision = precision_at_right(scores, labels)
    total = torch.zeros(labels.shape[1], dtype=torch.float64, device=scores.device).index_add(0, classes, precision)
    return total / labels.sum(dim=0).clamp(min=1)


@takes_arrays
def precision_at_right(
    scores: Float[Tensor, "N C"], labels: Bool[Tensor, "N C"]
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Float[Tensor, " P"]]:
    """Rank the images for each class, and return the precision at the rank of each correct image.

    An image is correct if it belongs to the class. The precision is the share of correct images among the images up to
    this rank.

    Args:
        scores: score of each class for each image.
        labels: mask with P true values (True: the image belongs to the class).

    Returns:
        The image, the class and the precision of each of the P correct images of all classes.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    ranks = torch.arange(1, len(scores) + 1, device=scores.device)
    for c in range(scores.shape[1]):
        order = scores[:, c].argsort(descending=True, stable=True)
        correct = labels[order, c]
        rank = ranks[correct]
        precision = torch.arange(1, len(rank) + 1, device=scores.device).double() / rank
        parts.append((order[correct], torch.full_like(rank, c), precision))
    images, classes, precision = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return images, classes, precision


@takes_arrays
def confusion(predicted: Int[Tensor, " N"], labels: Int[Tensor, " N"], classes: int) -> Int[Tensor, "C C"]:
    """Return the confusion matrix, the number of images by true class (row) and predicted class (column).

    Args:
        predicted, labels: predicted and true class of each image.
        classes: number of classes C.
    """
    return (labels * classes + predicted).bincount(minlength=classes * classes).view(classes, classes)


@takes_arrays
def macro_f1(predicted: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> float:
    """Return the mean F1 score of the classes that occur in `labels`.

    This is the metric of WILDS (Koh et al. 2021) for iWildCam.

    Args:
        predicted, labels: predicted and true class of each image.

    Example:
        >>> round(macro_f1(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])), 4)
        0.4
    """
    scores = []
    for label in labels.unique():
        right = ((predicted == label) & (labels == label)).sum()
        scores.append(2 * right / ((predicted == label).sum() + (labels == label).sum()))
    return torch.stack(scores).double().mean().item()


def group_accuracies(ranks: Sequence[int], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the number of images, the top-1 accuracy and the top-5 accuracy of each group of images.

    The lowest top-1 accuracy is the worst-group accuracy of WILDS (Koh et al. 2021).

    Args:
        ranks: rank of the true class of each image, from 1.
        groups: group of each image. Images without a group ("") are ignored.

    Example:
        >>> group_accuracies([1, 3, 1], ["a", "a", "b"])["a"]
        {'images': 2, 'acc1': 0.5, 'acc5': 1.0}
    """
    accuracies = {}
    for group in sorted(set(groups) - {""}):
        of_group = [rank for rank, one in zip(ranks, groups, strict=True) if one == group]
        shares = {f"acc{k}": sum(rank <= k for rank in of_group) / len(of_group) for k in (1, 5)}
        accuracies[group] = {"images": len(of_group), **shares}
    return accuracies


@takes_arrays
def calibration_error(confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017, section 3).

    It is the weighted mean of |accuracy − confidence| over bins of equal width.

    Args:
        confidence: probability of the predicted class, in [0, 1].
        correct: True if the prediction is correct.
        bins: number of bins of the confidence.

    Example:
        >>> calibration_error(torch.tensor([0.8, 0.8]), torch.tensor([True, False]))
        0.3000000119...
    """
    # As in the paper, bins include their upper end: (0, 1/bins], …
    number = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=number.device).index_add(
        0, number, correct.double() - confidence.double()
    )
    return gap.abs().sum().item() / len(confidence)
