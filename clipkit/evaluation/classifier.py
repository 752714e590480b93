"""Zero-shot classifiers: unit vectors computed from prompts that contain the class names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.data import Classes, LabeledImages, Templates, prompts_of
from clipkit.data.prompts import code_findings, paired_names, positions_of_numbers
from clipkit.embedding.features import Cache, Features
from clipkit.errors import DataError
from clipkit.evaluation.given import checked_classes, checked_templates
from clipkit.findings import Finding
from clipkit.metrics import similarity
from clipkit.models import DualEncoder

TEMPLATES = ("a photo of a {c}.",)
# The accuracies of single prompts are measured only up to this number of prompts, and this total number of scores.
_MOST_PROMPTS = 100
_MOST_SCORES = 1_000_000_000


def zeroshot_classifier(
    model: DualEncoder, classes: Classes, templates: Templates = TEMPLATES, *, cache: Cache = False
) -> Float[Tensor, "C D"]:
    """Return one unit vector per class: the normalized mean of the unit-length features of the class's prompts.

    The method follows Radford et al. 2021, section 3.1.4.
    """
    return classifier_of(
        prompt_features(Features(model, cache=cache), ClassNames.given(classes), checked_templates(templates))
    )


@dataclass(frozen=True)
class ClassNames:
    """The C classes that a classifier chooses from.

    Args:
        labels: the label of each class in the data.
        names: the names of each class that are inserted into prompts.
        findings: findings to report, e.g. that numeric labels are positions in a list of names.
    """

    labels: list[str]
    names: list[list[str]]
    findings: Sequence[Finding] = ()

    @classmethod
    def given(cls, classes: Classes) -> "ClassNames":
        """Create the classes from a list of names, or from a mapping of labels to one or several names.

        Raises:
            DataError: a class is given twice, or the type of `classes` is unsupported.
        """
        classes = checked_classes(classes)
        if isinstance(classes, Mapping):
            names = [[name] if isinstance(name, str) else list(name) for name in classes.values()]
            return cls(list(classes), names)
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if list(classes).count(name) > 1)
            raise DataError(f"the class {twice!r} was given {list(classes).count(twice)} times; give each class once")
        return cls(list(classes), [[name] for name in classes])

    @classmethod
    def of(cls, labeled: LabeledImages, classes: Classes | None) -> "ClassNames":
        """Create the classes from `classes`, or from the labels of the data if `classes` is None.

        If the labels are numbers and no label equals a given class, each label is a position in `classes`, counted from
        0 or from 1 (see `positions_of_numbers`).
        """
        if classes is None:
            findings = [] if labeled.class_names else code_findings(labeled.name, labeled.classes)
            return cls(labeled.classes, [[name] for name in labeled.class_names or labeled.classes], findings)
        given = cls.given(classes)
        labels = [name for name, used in zip(labeled.classes, labeled.has_images, strict=True) if used]
        if set(labels) & set(given.labels) or positions_of_numbers(labels, len(given.labels)) is None:
            return given
        named = paired_names(labeled.name, labels, [names[0] for names in given.names])
        example = f"{labels[0]!r} is {named[labels[0]]!r}"
        message = (
            f"{labeled.name}: the labels are numbers, so they are positions in the list of class names, e.g. {example}"
        )
        advice = "if these positions are wrong, give the class names as a JSON object that maps each label to its names"
        return cls(list(named), given.names, [Finding("numbered_classes", "note", message, advice)])

    def labels_of(self, labeled: LabeledImages) -> Int[Tensor, " N"] | Bool[Tensor, "N C"]:
        """Return the position of each image's class in `self.labels`.

        If images have several classes, return an N × C mask that is True for the classes of each image.

        Raises:
            DataError: the class of an image is not in `self.labels`.
        """
        position = labeled.positions_in(
            self.labels,
            f"which is not among the {len(self.labels)} given classes; give the class names as a "
            "JSON object that maps "
            "each label to its names",
        )
        if not labeled.several:
            return torch.from_numpy(position[labeled.labels])
        labels = torch.zeros(len(labeled.images), len(self.labels), dtype=torch.bool)
        used = labeled.has_images
        labels[:, position[used]] = torch.from_numpy(labeled.labels[:, used])
        return labels


def all_prompts(classes: ClassNames, templates: Templates) -> list[list[str]]:
    """Return one list of prompts per class: the templates, filled with the names of the class."""
    return [prompts_of(label, names, templates) for label, names in zip(classes.labels, classes.names, strict=True)]


def prompt_features(features: Features, classes: ClassNames, templates: Templates) -> list[Tensor]:
    """Return one tensor per class: the unit-length features of the class's prompts, one row per prompt."""
    prompts = all_prompts(classes, templates)
    rows = features.texts([prompt for of_class in prompts for prompt in of_class])
    return list(rows.split([len(of_class) for of_class in prompts]))


def classifier_of(prompt_features: Sequence[Tensor]) -> Float[Tensor, "C D"]:
    """Return one unit vector per class: the normalized mean of the features of the class's prompts."""
    return F.normalize(torch.stack([rows.mean(dim=0) for rows in prompt_features]), dim=-1)


def prompt_accuracies(
    prompt_features: Sequence[Tensor],
    templates: Templates,
    image_features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
) -> list[dict[str, Any]]:
    """Return two accuracies per template: with this template alone, and with all other templates.

    The list is empty for a single template, for more than 100 templates, and for more than 10⁹ scores in total. It is
    also empty if the templates depend on the class, or if images have several classes.
    """
    if isinstance(templates, Mapping) or labels.ndim == 2 or not 2 <= len(templates) <= _MOST_PROMPTS:
        return []
    count = len(templates)
    if len(prompt_features) * count * len(image_features) > _MOST_SCORES:
        return []
    means = torch.stack([rows.mean(dim=0) for rows in prompt_features])

    def accuracy(classifier: Float[Tensor, "C D"]) -> float:
        predicted = similarity(image_features, F.normalize(classifier, dim=-1)).argmax(dim=1)
        return round(float((predicted.cpu() == labels.cpu()).float().mean()), 6)

    accuracies = []
    for index, template in enumerate(templates):
        # A class with several names has one prompt per template and name; consecutive prompts use different templates.
        alone = torch.stack([rows[index::count].mean(dim=0) for rows in prompt_features])
        accuracies.append({"prompt": template, "acc1": accuracy(alone), "without": accuracy(count * means - alone)})
    return accuracies
