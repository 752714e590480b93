"""Zero-shot classification: the classes' names are the classifier."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.data import LabelledPictures, read_labelled
from clipkit.errors import DataError
from clipkit.evaluation.result import Figure, Result, chosen_examples, figure, versions
from clipkit.metrics import classification, cluster_bootstrap, true_label_ranks
from clipkit.metrics.bootstrap import DRAWS
from clipkit.models import DualEncoder

TEMPLATES = ("a photo of a {c}.",)
# Prompts with a place for the class name, or for each class its own sentences (Pratt et al. 2023, CuPL).
Templates = Sequence[str] | Mapping[str, Sequence[str]]
_EXAMPLES = 8


def zeroshot(
    model: DualEncoder,
    data: str | LabelledPictures,
    *,
    classes: Sequence[str] | None = None,
    templates: Templates = TEMPLATES,
    batch_size: int = 64,
    progress: bool = False,
) -> Result:
    """Accuracy of the class whose prompts are most similar to the picture.

    Args:
        model: what `clipkit.load` gives.
        data: class folders or a CSV with a label column, or labelled pictures already read.
        classes: class names to choose among; those of the data where not given.
        templates: prompts with `{c}` where the class name goes, or for each class its own sentences; their features
            are averaged.
        batch_size: pictures in one forward; it does not change what is measured.
        progress: show bars on the terminal.

    Raises:
        DataError: the data cannot be read, a label is not among `classes`, or a template lacks `{c}`.
    """
    started = time.perf_counter()
    labelled = read_labelled(data) if isinstance(data, str) else data
    names = list(labelled.classes if classes is None else classes)
    labels = torch.from_numpy(_labels_among(labelled, names))
    classifier = zeroshot_classifier(model, names, templates)
    image_features = model.encode_image(labelled.pictures, batch_size, progress=progress)
    scores = image_features @ classifier.T
    examples = [
        {
            "query": {"image": str(labelled.pictures[image])},
            "answers": [
                {
                    "text": names[c],
                    "score": round(scores[image, c].item(), 4),
                    "right": c == int(labels[image]),
                }
                for c in scores[image].argsort(descending=True, stable=True)[:5].tolist()
            ],
        }
        for image in chosen_examples(_EXAMPLES, len(scores))
    ]
    return {
        "task": "zeroshot",
        "model": model.name,
        "data": {
            "name": labelled.name,
            "images": len(labelled.pictures),
            "classes": len(names),
            "sha256": labelled.sha256,
        },
        "metrics": _metrics(scores, labels),
        "settings": {
            "templates": dict(templates) if isinstance(templates, Mapping) else list(templates),
            "classes": names,
            "bootstrap_draws": DRAWS,
            "bootstrap_seed": 0,
            "interval": 0.95,
        },
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 2),
        "examples": examples,
    }


def zeroshot_classifier(
    model: DualEncoder, classes: Sequence[str], templates: Templates = TEMPLATES
) -> Float[Tensor, "C D"]:
    """One unit vector a class: the mean of its prompts' unit features, normalised (Radford et al. 2021, 3.1.4)."""
    prompts = [_prompts(name, templates) for name in classes]
    features = model.encode_text([prompt for own in prompts for prompt in own])
    means = [own.mean(dim=0) for own in features.split([len(own) for own in prompts])]
    return F.normalize(torch.stack(means), dim=-1)


def _prompts(name: str, templates: Templates) -> list[str]:
    if isinstance(templates, Mapping):
        if not templates.get(name):
            raise DataError(f"the class-specific prompts have none for {name!r}; give at least one sentence a class")
        return list(templates[name])
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise DataError(f"the template {template!r} has no place for the class name; write {{c}} where it goes")
    return [template.replace("{c}", name).replace("{}", name) for template in templates]


def _labels_among(labelled: LabelledPictures, names: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    position = {name: index for index, name in enumerate(names)}
    unknown = [name for name in labelled.classes if name not in position]
    if unknown:
        raise DataError(
            f"{labelled.name}: has pictures of {unknown[0]!r}, which is not among the {len(names)} classes given"
        )
    return np.array([position[name] for name in labelled.classes], dtype=np.int64)[labelled.labels]


def _metrics(scores: Float[Tensor, "N C"], labels: Tensor) -> dict[str, Figure]:
    values = classification(scores, labels)
    ranks = true_label_ranks(scores, labels).numpy()
    images, classes = np.arange(len(scores)), scores.shape[1]
    top1, top5 = (ranks <= 1).astype(np.float64), (ranks <= 5).astype(np.float64)
    draws = {
        "acc1": cluster_bootstrap(top1, images),
        "acc5": cluster_bootstrap(top5, images),
        "mean_per_class_recall": cluster_bootstrap(top1, images, labels.numpy()),
    }
    chance = {"acc1": 1 / classes, "acc5": 5 / classes, "mean_per_class_recall": 1 / classes}
    return {
        name: figure(value, draws[name], chance[name] if value is not None else None) for name, value in values.items()
    }
