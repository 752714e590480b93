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
    """Return one unit vector per class: the normalized mean of its prompts' unit features.

    The method follows Radford et al. 2021, section 3.1.4. A prompt that occurs several times is encoded once.
    """
    return classifier_of(
        prompt_features(Features(model, cache=cache), ClassNames.given(classes), checked_templates(templates))
    )


@dataclass(frozen=True)
class ClassNames:
    """The C classes that a classifier chooses from.

    Args:
        labels: the label of each class in the data.
        names: the names of each class in prompts.
        findings: findings about assumptions, e.g. how labels that are numbers were matched with names.
    """

    labels: list[str]
    names: list[list[str]]
    findings: Sequence[Finding] = ()

    @classmethod
    def given(cls, classes: Classes) -> "ClassNames":
        """Return classes from their names, or from a mapping of each label to one or several names.

        Raises:
            DataError: a class is given twice, or the type of the classes is unsupported.
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
        """Return `classes` if given, otherwise the classes of the dataset.

        If the labels are numbers and no given class is a label, the numbers are positions in the given classes, from
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
            f"{labeled.name}: its labels are numbers, which are used as positions in the list of class names: {example}"
        )
        advice = "if this is wrong, give the class names as a JSON object that maps each label to its names"
        return cls(list(named), given.names, [Finding("numbered_classes", "note", message, advice)])

    def labels_of(self, labeled: LabeledImages) -> Int[Tensor, " N"] | Bool[Tensor, "N C"]:
        """Return the class of each image as a position in `labels`, from 0; booleans if images have several labels.

        Raises:
            DataError: an image has a class that is not among these classes.
        """
        position = labeled.positions_in(
            self.labels,
            f"which is not among the {len(self.labels)} given classes; give a name for each label, as a "
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
    """Return the prompts of each class."""
    return [prompts_of(label, names, templates) for label, names in zip(classes.labels, classes.names, strict=True)]


def prompt_features(features: Features, classes: ClassNames, templates: Templates) -> list[Tensor]:
    """Return the unit features of each class's prompts."""
    prompts = all_prompts(classes, templates)
    rows = features.texts([prompt for of_class in prompts for prompt in of_class])
    return list(rows.split([len(of_class) for of_class in prompts]))


def classifier_of(prompt_features: Sequence[Tensor]) -> Float[Tensor, "C D"]:
    """Return one unit vector per class: the normalized mean of the features of its prompts."""
    return F.normalize(torch.stack([rows.mean(dim=0) for rows in prompt_features]), dim=-1)


def prompt_accuracies(
    prompt_features: Sequence[Tensor],
    templates: Templates,
    image_features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
) -> list[dict[str, Any]]:
    """Return for each prompt the accuracy with only this prompt, and with all prompts except this one.

    The list is empty if the templates differ between classes, if images have several labels, or if it would take too
    long.
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
