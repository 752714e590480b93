"""Metrics, per-class statistics and examples of image classification, computed from image-class scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.data.sequences import evenly_spaced
from clipkit.evaluation.examples import answer, example, top
from clipkit.evaluation.figures import Column, Columns, Figure, Queries, figure, figures
from clipkit.metrics import (
    average_precision,
    calibration_error,
    confusion,
    group_accuracies,
    precision_at_right,
    precision_by_chance,
    true_label_ranks,
)

_EXAMPLES = 8
_MISTAKES = 12
_ROWS = 1024  # number of images whose probabilities are in memory at once
_CONFUSED = 3  # number of wrong classes that are shown for each class


class Classification(TypedDict):
    """Metrics, per-class statistics, per-image outcomes and examples of image classification."""

    metrics: dict[str, Figure]
    classes: list[dict[str, Any]]
    queries: dict[str, list[Any]]
    examples: list[dict[str, Any]]


def classification_result(
    scores: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
    titles: Sequence[str],
    images: Sequence[Any],
    probabilities: Callable[[Tensor], Tensor],
) -> Classification:
    """Compute metrics, per-class statistics, per-image outcomes and examples from image-class cosines.

    Args:
        scores: cosine similarity of each image with each class.
        labels: position of each image's class; or a mask that is True for each class of an image.
        titles: names of the classes.
        images: the images, for examples.
        probabilities: function that turns rows of cosines into class probabilities, which increase with the cosine.
    """
    if labels.ndim == 2:
        return _multilabel(scores, labels, titles, images)
    predicted = scores.argmax(dim=1)
    confidence = torch.cat([probabilities(rows).amax(dim=1) for rows in scores.split(_ROWS)])
    ranks = [true_label_ranks(*rows) for rows in zip(scores.split(_ROWS), labels.split(_ROWS), strict=True)]
    queries = {
        "label": labels.tolist(),
        "predicted": predicted.tolist(),
        "true_rank": torch.cat(ranks).tolist(),
        "confidence": [round(value, 6) for value in confidence.tolist()],
        "images": [str(image) for image in images],
    }
    columns = classification_columns(queries, len(titles))
    metrics = {name: figure(None, None, None) for name in ("acc1", "acc5")}
    metrics |= figures(columns, {name: (5 if name == "acc5" else 1) / len(titles) for name in columns})
    # No interval: resampling increases a mean of absolute values, so the interval would not contain the value.
    metrics["ece"] = figure(calibration_error(confidence, predicted == labels), None, None)
    return {
        "metrics": metrics,
        "classes": _class_rows(predicted, labels, titles),
        "queries": queries,
        "examples": [
            *_examples(scores, labels, titles, images),
            *_mistakes(scores, labels, predicted, confidence, titles, images),
        ],
    }


def group_result(ranks: Sequence[int], groups: Sequence[str], classes: int) -> tuple[dict[str, Figure], list[Any]]:
    """Return the accuracy of the worst group of images, and the accuracies of each group.

    The worst group is chosen separately for top-1 and top-5 accuracy.

    Args:
        ranks: rank of each image's correct class; 1 is the best rank.
        groups: name of each image's group, or "" for an image without a group.
        classes: number of classes.

    Returns:
        Metrics `acc1_worst_group` and, with five or more classes, `acc5_worst_group`; and one row per group.
    """
    rows = group_accuracies(ranks, groups)
    worst = {k: min((row[f"acc{k}"] for row in rows.values()), default=None) for k in (1, 5)}
    metrics = {
        f"acc{k}_worst_group": figure(value, None, k / classes) for k, value in worst.items() if k == 1 or classes >= k
    }
    return metrics, [{"group": name, **row} for name, row in rows.items()]


def classification_columns(queries: Mapping[str, Sequence[Any]], classes: int) -> Columns:
    """Return one value per image for each single-label metric, e.g. 1 if the top-1 class is correct.

    Args:
        queries: the part `queries` of a zero-shot classification result.
        classes: number of classes.
    """
    rank, labels = np.asarray(queries["true_rank"]), np.asarray(queries["label"])
    images = Queries(np.arange(len(rank)))
    by_class = Queries(images.clusters, strata=labels)
    columns = {"acc1": Column(images, (rank <= 1).astype(np.float64))}
    if classes >= 5:
        columns["acc5"] = Column(images, (rank <= 5).astype(np.float64))
    columns["mean_per_class_recall"] = Column(by_class, (rank <= 1).astype(np.float64))
    return columns


def _multilabel(scores: Tensor, labels: Tensor, titles: Sequence[str], images: Sequence[Any]) -> Classification:
    per_class = average_precision(scores, labels)
    counts = labels.sum(dim=0).tolist()
    of_images, of_classes, precision = (part.tolist() for part in precision_at_right(scores, labels))
    queries = {
        "image": of_images,
        "label": of_classes,
        "precision": precision,
        "images": [str(image) for image in images],
    }
    total = len(labels)
    by_chance = {count: precision_by_chance(total, count, total) if count else 0.0 for count in set(counts)}
    chance = float(np.mean([by_chance[count] for count in counts]))
    return {
        "metrics": figures(multilabel_columns(queries, len(titles)), {"mean_average_precision": chance}),
        "classes": [
            {"class": title, "images": count, "average_precision": round(value, 6)}
            for title, count, value in zip(titles, counts, per_class.tolist(), strict=True)
        ],
        "queries": queries,
        "examples": _examples(scores, labels, titles, images),
    }


def multilabel_columns(queries: Mapping[str, Sequence[Any]], classes: int) -> Columns:
    """Return one value per image and class of the image, from which the mean average precision is computed.

    The mean average precision is the mean over the classes of the mean value of each class.

    To compute the value, all images are ranked by their scores for the class. The value is the precision at the rank of
    the image. The average precision of a class without images is 0, so all values are multiplied by the share of
    classes with images. Bootstrap resamples draw images within each class without ranking again.

    Args:
        queries: the part `queries` of a multi-label classification result.
        classes: number of classes.
    """
    labels = np.asarray(queries["label"])
    right = Queries(np.asarray(queries["image"]), strata=labels)
    share = len(np.unique(labels)) / classes
    return {"mean_average_precision": Column(right, np.asarray(queries["precision"]) * share)}


def _class_rows(predicted: Tensor, labels: Tensor, titles: Sequence[str]) -> list[dict[str, Any]]:
    """Return the recall, the precision and the most frequent wrong predictions of each class."""
    table = confusion(predicted, labels, len(titles))
    right, images, answers = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    mistakes = table.clone().fill_diagonal_(0)
    counts, taken_for = mistakes.topk(min(_CONFUSED, len(titles)), dim=1)
    return [
        {
            "class": titles[c],
            "images": int(images[c]),
            "recall": _share(right[c], images[c]),
            "precision": _share(right[c], answers[c]),
            "taken_for": [
                [titles[int(other)], int(count)] for other, count in zip(taken_for[c], counts[c], strict=True) if count
            ],
        }
        for c in range(len(titles))
    ]


def _share(part: Tensor, whole: Tensor) -> float | None:
    return round(int(part) / int(whole), 6) if int(whole) else None


def _mistakes(
    scores: Tensor,
    labels: Int[Tensor, " N"],
    predicted: Int[Tensor, " N"],
    confidence: Float[Tensor, " N"],
    titles: Sequence[str],
    images: Sequence[Any],
) -> list[dict[str, Any]]:
    """Return examples of wrong predictions, sorted by confidence, the highest first."""
    wrong = (predicted != labels).nonzero()[:, 0]
    order = confidence[wrong].argsort(descending=True, stable=True)[:_MISTAKES]
    mistakes = []
    for image in wrong[order].tolist():
        right = int(labels[image])
        answers = [answer("text", titles[c], scores[image, c], c == right) for c in (int(predicted[image]), right)]
        confident = {"kind": "mistake", "row": image, "confidence": round(float(confidence[image]), 4)}
        mistakes.append(example("image", images[image], answers) | confident)
    return mistakes


def _examples(
    scores: Tensor,
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
    titles: Sequence[str],
    images: Sequence[Any],
) -> list[dict[str, Any]]:
    def right(image: int, c: int) -> bool:
        return bool(labels[image, c]) if labels.ndim == 2 else int(labels[image]) == c

    return [
        example(
            "image",
            images[image],
            [answer("text", titles[c], scores[image, c], right(image, c)) for c in top(scores[image], 5)],
        )
        for image in evenly_spaced(len(scores), _EXAMPLES)
    ]
