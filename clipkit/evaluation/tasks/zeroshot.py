"""Zero-shot classification with prompts that contain the class names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data import Classes, LabeledImages, Templates, read_labeled
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.errors import DataError
from clipkit.evaluation.classification import (
    classification_columns,
    classification_result,
    group_result,
    multilabel_columns,
)
from clipkit.evaluation.classifier import (
    TEMPLATES,
    ClassNames,
    all_prompts,
    classifier_of,
    prompt_accuracies,
    prompt_features,
)
from clipkit.evaluation.example_maps import Explain, add_maps, check_explainable, chosen_queries, explained_queries
from clipkit.evaluation.figures import Columns, Means, figure
from clipkit.evaluation.given import checked_templates
from clipkit.evaluation.neighborhood import map_of_classes
from clipkit.evaluation.predictions import write_class_predictions
from clipkit.evaluation.prompt_choices import prompt_choices
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Options, Task, TaskData
from clipkit.metrics import macro_f1, similarity
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes


def zeroshot(
    model: DualEncoder,
    data: object,
    *,
    classes: Classes | None = None,
    templates: Templates | None = None,
    compare_prompts: bool = False,
    explain: Explain = False,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate zero-shot classification: an image gets the class whose prompts are most similar to it.

    The main metric is the accuracy. If images have several classes, it is the mean average precision.

    Args:
        model: returned by `clipkit.load`.
        data: class folders, a table with a label column, a Python object as for `retrieval` with labels instead of
            captions, or labeled images already read.
        classes: names of the classes, equal to the labels; or a mapping from each label to one or several names for
            prompts. None: the classes of the data.
        templates: prompts with `{c}` in place of the class name; or a mapping from each class to its prompts. The
            features of a class's prompts are averaged. None: the templates of the data, or "a photo of a {c}.".
        compare_prompts: add `prompt_choices` to the result: the accuracy with given and with cleaned class names,
            each with sets of templates of different sizes. Ignored if images have several classes.
        explain: examples with relevance maps to add to the result (see `clipkit.explain`). True: maps of the predicted
            class and of the correct class for the most confident mistakes. One or several texts: additionally, the
            images that match each text best.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the scores of every image.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read, a label is not among `classes`, a template lacks `{c}`, or `explain` is True
            although images have several classes.
        ModelError: a feature is not finite, or `clipkit.explain` does not support the model.

    Example:
        >>> result = zeroshot(clipkit.load("runs/a"), "photos_by_class/")   # doctest: +SKIP
        >>> result["metrics"]["acc1"]["value"]                              # doctest: +SKIP
        0.731
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image, text=model.text)
    labeled = data if isinstance(data, LabeledImages) else read_labeled(data)
    class_names = ClassNames.of(labeled, classes)
    templates = _templates(labeled, templates)
    labels = class_names.labels_of(labeled)
    chosen = chosen_queries(explain)
    if explain is True and labels.ndim == 2:
        raise DataError(
            f"{labeled.name}: images have several labels, so mistakes cannot be explained; leave out "
            "--explain (in Python: explain), or give text queries to explain"
        )
    if explain is True or chosen:
        check_explainable(model)
    hashes = features.content_hashes(labeled.images)
    prompts = prompt_features(features, class_names, templates)
    classifier = classifier_of(prompts)
    image_features = features.images(labeled.images, hashes)
    scores = similarity(image_features, classifier)
    titles = [names[0] for names in class_names.names]
    if predictions is not None and features.processes.is_main:
        write_class_predictions(predictions, labeled.images, scores, labels, titles)
    outcome = classification_result(scores, labels, titles, labeled.images, model.probabilities)
    if labels.ndim == 1:
        outcome["metrics"]["macro_f1"] = figure(macro_f1(scores.argmax(dim=1).cpu(), labels.cpu()), None, None)
    if labels.ndim == 1 and (explain is True or chosen):
        add_maps(model, outcome["examples"], outcome["queries"], labeled.images, classifier)
    outcome["examples"] += explained_queries(features, chosen, labeled.images, image_features)
    groups = None
    if labeled.groups is not None and labels.ndim == 1:
        worst, groups = group_result(outcome["queries"]["true_rank"], labeled.groups, len(titles))
        outcome["metrics"] |= worst
    accuracies = prompt_accuracies(prompts, templates, image_features, labels)
    choices = None
    if compare_prompts and labels.ndim == 1:
        choices = prompt_choices(features, class_names, templates, image_features, labels)
    positions = [] if labels.ndim == 2 else map_of_classes(image_features.cpu(), [titles[c] for c in labels.tolist()])
    return build_result(
        "zeroshot",
        model.name,
        {
            "name": labeled.name,
            "images": len(labeled.images),
            "classes": len(titles),
            "sha256": data_hash(hashes, class_names.labels, labels.flatten().tolist()),
        },
        **outcome,
        settings={
            "templates": dict(templates) if isinstance(templates, Mapping) else list(templates),
            "classes": dict(zip(class_names.labels, class_names.names, strict=True)),
            "scale": model.logit_scale.exp().item(),
        },
        features=features.counts,
        groups=groups,
        prompts=accuracies,
        prompt_choices=choices,
        map=positions,
        findings=[*labeled.findings, *class_names.findings],
        seconds=features.seconds,
    )


def _columns(result: Mapping[str, Any]) -> tuple[Columns, Means]:
    of_task = multilabel_columns if "precision" in result["queries"] else classification_columns
    return of_task(result["queries"], result["data"]["classes"]), {}


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    queries = result["queries"]
    if "true_rank" not in queries:
        return []
    titles = [row["class"] for row in result["classes"]] if "classes" in result else None
    return [
        Answers(
            "image",
            queries.get("images"),
            np.asarray(queries["true_rank"], dtype=np.float64),
            are_ranks=True,
            images=queries.get("images"),
            answered=None if titles is None else [titles[c] for c in queries["predicted"]],
            right=None if titles is None else [titles[c] for c in queries["label"]],
        )
    ]


def _run(model: DualEncoder, data: TaskData, options: Options) -> Result:
    return zeroshot(model, data.data, classes=data.classes, templates=data.templates, **options)


def _templates(labeled: LabeledImages, templates: Templates | None) -> Templates:
    return checked_templates(templates if templates is not None else labeled.templates or TEMPLATES)


def _texts(data: TaskData) -> list[str]:
    prompts = all_prompts(ClassNames.of(data.data, data.classes), _templates(data.data, data.templates))
    return [prompt for of_class in prompts for prompt in of_class]


TASK = Task(read=read_labeled, run=_run, columns=_columns, answers=_answers, texts=_texts)
