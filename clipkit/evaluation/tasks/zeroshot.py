"""Zero-shot classification: the classes' names are the classifier."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.data import Classes, LabeledImages, Templates, prompts_of, read_labeled
from clipkit.embedding.features import Cache, Features
from clipkit.errors import DataError
from clipkit.evaluation.figures import Column, Columns, Figure, Queries, figure, figures
from clipkit.evaluation.neighbourhood import map_of_classes
from clipkit.evaluation.predictions import write_class_predictions
from clipkit.evaluation.result import INTERVAL, Result, chosen_examples, data_hash, shown, versions
from clipkit.metrics import (
    average_precision,
    calibration_error,
    confusion,
    precision_at_right,
    precision_by_chance,
    similarity,
    true_label_ranks,
)
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present

if TYPE_CHECKING:
    from clipkit.processes import Processes

TEMPLATES = ("a photo of a {c}.",)
_MISTAKES = 12
# Prompts that are measured each by itself, and scores in all up to which.
_PROMPTS = 100
_LARGEST = 1_000_000_000
_EXAMPLES = 8
_ROWS = 1024  # images whose probabilities are held at once
_CONFUSED = 3  # classes that a class is most often taken for


def zeroshot(
    model: DualEncoder,
    data: str | LabeledImages,
    *,
    classes: Classes | None = None,
    templates: Templates | None = None,
    batch_size: int = 64,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: "Processes | None" = None,
    progress: bool = False,
) -> Result:
    """Accuracy of the class whose prompts are most similar to the image; of several classes an image, mAP.

    Args:
        model: what `clipkit.load` gives.
        data: class folders or a CSV with a label column, or labelled images already read.
        classes: class names to choose among, which the labels are; or for each label its name, or several, all of
            which make prompts; those of the data where not given.
        templates: prompts with `{c}` where the class name goes, or for each class its own sentences; their features
            are averaged. Those of the data where not given, else "a photo of a {c}.".
        batch_size: images in one forward; it does not change what is measured.
        cache: folder for features; None: the user's cache folder; False: none.
        predictions: a Parquet file to write each image's scores to.
        processes: share the images and prompts; all get the result, the first writes.
        progress: show bars on the terminal.

    Raises:
        DataError: the data cannot be read, a label is not among `classes`, or a template lacks `{c}`.
        ModelError: a feature is not finite.

    Example:
        >>> result = zeroshot(clipkit.load("runs/a"), "photos_by_class/")   # doctest: +SKIP
        >>> result["metrics"]["acc1"]["value"]                              # doctest: +SKIP
        0.731
    """
    started = time.perf_counter()
    check_present(model.name, image=model.image, text=model.text)
    labelled = read_labeled(data) if isinstance(data, str) else data
    chosen = ChosenClasses.of(labelled, classes)
    prompts = templates if templates is not None else labelled.templates or TEMPLATES
    labels = chosen.labels_of(labelled)
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    hashes = features.content_hashes(labelled.images)
    prompt_features = features_of_prompts(features, chosen, prompts)
    classifier = classifier_of(prompt_features)
    image_features = features.images(labelled.images, hashes)
    scores = similarity(image_features, classifier)
    titles = [names[0] for names in chosen.names]
    if predictions is not None and (processes is None or processes.is_main):
        write_class_predictions(predictions, labelled.images, scores, labels, titles)
    scored = classification_result(scores, labels, titles, labelled.images, model.logit_scale.exp().item())
    return {
        "task": "zeroshot",
        "model": model.name,
        "data": {
            "name": labelled.name,
            "images": len(labelled.images),
            "classes": len(titles),
            "sha256": data_hash(hashes, chosen.labels, labels.flatten().tolist()),
        },
        "metrics": scored["metrics"],
        "classes": scored["classes"],
        "settings": {
            "templates": dict(prompts) if isinstance(prompts, Mapping) else list(prompts),
            "classes": dict(zip(chosen.labels, chosen.names, strict=True)),
            "scale": model.logit_scale.exp().item(),
            **INTERVAL,
            "features": {"computed": features.computed, "from_cache": features.from_cache},
        },
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 2),
        "examples": scored["examples"],
        "queries": scored["queries"],
        "prompts": prompt_accuracies(prompt_features, prompts, image_features, labels),
        "map": [] if labels.ndim == 2 else map_of_classes(image_features.cpu(), [titles[c] for c in labels.tolist()]),
    }


def zeroshot_classifier(
    model: DualEncoder, classes: Classes, templates: Templates = TEMPLATES, *, cache: Cache = False
) -> Float[Tensor, "C D"]:
    """One unit vector a class: the mean of its prompts' unit features, normalised (Radford et al. 2021, 3.1.4).

    All classes' prompts are encoded together, similar lengths with each other and equal ones once.
    """
    return classifier_of(features_of_prompts(Features(model, cache=cache), ChosenClasses.named(classes), templates))


@dataclass(frozen=True)
class ChosenClasses:
    """The C classes to choose among: what the data calls each, and its names in prompts."""

    labels: list[str]
    names: list[list[str]]

    @classmethod
    def named(cls, classes: Classes) -> "ChosenClasses":
        """From class names, or names by label."""
        if isinstance(classes, Mapping):
            names = [[own] if isinstance(own, str) else list(own) for own in classes.values()]
            return cls(list(classes), names)
        twice = [name for name in classes if list(classes).count(name) > 1] if len(set(classes)) < len(classes) else []
        if twice:
            raise DataError(f"the class {twice[0]!r} is given {twice.count(twice[0])} times; name each class once")
        return cls(list(classes), [[name] for name in classes])

    @classmethod
    def of(cls, labelled: LabeledImages, classes: Classes | None) -> "ChosenClasses":
        """Those given, else those of the data."""
        if classes is not None:
            return cls.named(classes)
        return cls(labelled.classes, [[name] for name in labelled.class_names or labelled.classes])

    def labels_of(self, labelled: LabeledImages) -> Int[Tensor, " N"] | Bool[Tensor, "N C"]:
        """The images' labels, as positions among these classes.

        Raises:
            DataError: an image has a class that is not among them.
        """
        place = labelled.places_among(
            self.labels,
            f"which is not among the {len(self.labels)} classes given; give a name for each label, as a JSON object of "
            "label to name or names",
        )
        if not labelled.several:
            return torch.from_numpy(place[labelled.labels])
        labels = torch.zeros(len(labelled.images), len(self.labels), dtype=torch.bool)
        labels[:, place] = torch.from_numpy(labelled.labels)
        return labels


def features_of_prompts(features: Features, chosen: ChosenClasses, templates: Templates) -> list[Tensor]:
    """For each class the unit features of its prompts; they may be in the cache."""
    prompts = [prompts_of(label, names, templates) for label, names in zip(chosen.labels, chosen.names, strict=True)]
    rows = features.texts([prompt for own in prompts for prompt in own])
    return list(rows.split([len(own) for own in prompts]))


def classifier_of(prompt_features: Sequence[Tensor]) -> Float[Tensor, "C D"]:
    """The normalised mean of each class's prompts."""
    return F.normalize(torch.stack([own.mean(dim=0) for own in prompt_features]), dim=-1)


def prompt_accuracies(
    prompt_features: Sequence[Tensor],
    templates: Templates,
    image_features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
) -> list[dict[str, Any]]:
    """The accuracy of each prompt alone, and of all the others without it.

    None where classes have their own sentences, where images have several, or where it would take long.
    """
    if isinstance(templates, Mapping) or labels.ndim == 2 or not 2 <= len(templates) <= _PROMPTS:
        return []
    count = len(templates)
    if len(prompt_features) * count * len(image_features) > _LARGEST:
        return []
    whole = torch.stack([own.mean(dim=0) for own in prompt_features])

    def accuracy(means: Float[Tensor, "C D"]) -> float:
        predicted = similarity(image_features, F.normalize(means, dim=-1)).argmax(dim=1)
        return round(float((predicted.cpu() == labels.cpu()).float().mean()), 6)

    found = []
    for place, template in enumerate(templates):
        # A class with several names has each of them in every template, and templates alternate.
        alone = torch.stack([own[place::count].mean(dim=0) for own in prompt_features])
        found.append({"prompt": template, "acc1": accuracy(alone), "without": accuracy(count * whole - alone)})
    return found


class Scored(TypedDict):
    """The part of a result that comes from the scores."""

    metrics: dict[str, Figure]
    classes: list[dict[str, Any]]
    queries: dict[str, list[Any]]
    examples: list[dict[str, Any]]


def classification_result(
    scores: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
    titles: Sequence[str],
    images: Sequence[Any],
    scale: float,
) -> Scored:
    """What a result says of cosines; probabilities are the softmax of scale · cosine."""
    if labels.ndim == 2:
        return _several_labels(scores, labels, titles, images)
    predicted = scores.argmax(dim=1)
    confidence = torch.cat([(rows * scale).softmax(dim=1).amax(dim=1) for rows in scores.split(_ROWS)])
    ranks = [true_label_ranks(*rows) for rows in zip(scores.split(_ROWS), labels.split(_ROWS), strict=True)]
    queries = {
        "label": labels.tolist(),
        "predicted": predicted.tolist(),
        "true_rank": torch.cat(ranks).tolist(),
        "confidence": [round(own, 6) for own in confidence.tolist()],
        "images": [str(image) for image in images],
    }
    columns = classification_columns(queries, len(titles))
    metrics = {name: figure(None, None, None) for name in ("acc1", "acc5")}
    metrics |= figures(columns, {name: (5 if name == "acc5" else 1) / len(titles) for name in columns})
    # Resampling adds to it (a mean of absolute values), so its draws would not hold the value: no interval.
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


def classification_columns(queries: Mapping[str, Sequence[Any]], classes: int) -> Columns:
    """Every figure of single-label classification, a row an image, from what a result holds of them."""
    rank, labels = np.asarray(queries["true_rank"]), np.asarray(queries["label"])
    images = Queries(np.arange(len(rank)))
    by_class = Queries(images.clusters, strata=labels)
    columns = {"acc1": Column(images, (rank <= 1).astype(np.float64))}
    if classes >= 5:
        columns["acc5"] = Column(images, (rank <= 5).astype(np.float64))
    columns["mean_per_class_recall"] = Column(by_class, (rank <= 1).astype(np.float64))
    return columns


def _several_labels(scores: Tensor, labels: Tensor, titles: Sequence[str], images: Sequence[Any]) -> Scored:
    per_class = average_precision(scores, labels)
    counts = labels.sum(dim=0).tolist()
    of_images, of_classes, precision = (part.tolist() for part in precision_at_right(scores, labels))
    queries = {
        "image": of_images,
        "label": of_classes,
        "precision": precision,
        "images": [str(image) for image in images],
    }
    images_of = len(labels)
    by_chance = {count: precision_by_chance(images_of, count, images_of) if count else 0.0 for count in set(counts)}
    chance = float(np.mean([by_chance[count] for count in counts]))
    return {
        "metrics": figures(several_columns(queries, len(titles)), {"mean_average_precision": chance}),
        "classes": [
            {"class": title, "images": count, "average_precision": round(own, 6)}
            for title, count, own in zip(titles, counts, per_class.tolist(), strict=True)
        ],
        "queries": queries,
        "examples": _examples(scores, labels, titles, images),
    }


def several_columns(queries: Mapping[str, Sequence[Any]], classes: int) -> Columns:
    """Mean average precision, a row a right answer; a class without an image counts 0.

    The gallery stays whole: a right answer's precision is what it was, and images are drawn within each class.
    """
    labels = np.asarray(queries["label"])
    right = Queries(np.asarray(queries["image"]), strata=labels)
    share = len(np.unique(labels)) / classes
    return {"mean_average_precision": Column(right, np.asarray(queries["precision"]) * share)}


def _class_rows(predicted: Tensor, labels: Tensor, titles: Sequence[str]) -> list[dict[str, Any]]:
    """Recall, precision and the commonest mistakes of each class."""
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
    """The wrong answers that the model was surest of."""
    wrong = (predicted != labels).nonzero()[:, 0]
    order = confidence[wrong].argsort(descending=True, stable=True)[:_MISTAKES]
    return [
        {
            "query": {"image": shown(images[image])},
            "answers": [
                {"text": titles[c], "score": round(scores[image, c].item(), 4), "right": c == int(labels[image])}
                for c in (int(predicted[image]), int(labels[image]))
            ],
            "kind": "mistake",
            "confidence": round(float(confidence[image]), 4),
        }
        for image in wrong[order].tolist()
    ]


def _examples(
    scores: Tensor,
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
    titles: Sequence[str],
    images: Sequence[Any],
) -> list[dict[str, Any]]:
    def right(image: int, c: int) -> bool:
        return bool(labels[image, c]) if labels.ndim == 2 else int(labels[image]) == c

    return [
        {
            "query": {"image": shown(images[image])},
            "answers": [
                {"text": titles[c], "score": round(scores[image, c].item(), 4), "right": right(image, c)}
                for c in scores[image].argsort(descending=True, stable=True)[:5].tolist()
            ],
        }
        for image in chosen_examples(_EXAMPLES, len(scores))
    ]
