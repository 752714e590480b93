"""Linear probe and k-nearest neighbors on frozen image features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data import LabeledImages, read_labeled
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.embedding.hashes import content_hashes
from clipkit.evaluation.figures import Column, Columns, Queries, figure, figures
from clipkit.evaluation.fitting import fit
from clipkit.evaluation.labeled_parts import LabeledPart, few_shots, held_out, read_single_label
from clipkit.evaluation.neighborhood import map_of_classes
from clipkit.evaluation.predictions import write_class_predictions
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Options, Task, TaskData
from clipkit.metrics import true_label_ranks
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes


def probe(
    model: DualEncoder,
    data: object,
    *,
    test: object = None,
    shots: int | None = None,
    seeds: int = 3,
    neighbours: int = 20,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate image features with a linear classifier (metrics lp_…) and with k-nearest neighbors (metrics knn_…).

    The linear classifier is multinomial logistic regression. The weight decay is chosen on some of the training images.
    Then the classifier is fitted to all training images or, with `shots`, only to the drawn images.

    Args:
        model: returned by `clipkit.load`.
        data: labeled training images, in any form that `zeroshot` accepts.
        test: labeled test images. None: a fifth of each class of `data` is held out. The choice does not depend on the
            order of the images, and files with equal content are never separated.
        shots: number of training images per class. None: all images.
        seeds: number of random draws of the shots; metrics are means over the draws. Ignored without `shots`.
        neighbours: number of nearest neighbors.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the scores of the linear classifier, one draw after the other.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read, has several classes per image, or has too few images.
        ModelError: a feature is not finite.

    Example:
        >>> result = probe(clipkit.load("runs/a"), "train/", test="test/", shots=16)   # doctest: +SKIP
        >>> result["metrics"]["lp_acc1"]["value"]                                      # doctest: +SKIP
        0.91
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image)
    training = read_single_label(data).without_empty_classes()
    given = read_single_label(test) if test is not None else None
    classes = training.classes
    # All problems of the data are found before an image is encoded.
    learned = LabeledPart.of(training, classes, features.content_hashes(training.images))
    if given is None:
        out = held_out(learned, classes, seed=0)
        measured, learned = learned.take(out), learned.take(~out)
    else:
        measured = LabeledPart.of(given, classes, features.content_hashes(given.images))
    if shots is None:
        validation = held_out(learned, classes, seed=1)
        splits = [(~validation, validation)]
    else:
        splits = [few_shots(learned, shots, classes, seed) for seed in range(seeds)]
    x, measured_x = features.images(learned.images, learned.hashes), features.images(measured.images, measured.hashes)
    fits = [
        fit(
            x,
            learned.labels,
            split,
            measured_x,
            len(classes),
            shots is None,
            neighbours,
            model.device,
            features.progress,
        )
        for split in splits
    ]
    queries = {
        "label": measured.labels.tolist(),
        "lp_top1": _share_right([one.linear for one in fits], measured, 1),
        "lp_top5": _share_right([one.linear for one in fits], measured, 5),
        "knn_top1": _share_right([one.neighbors for one in fits], measured, 1),
        "images": [str(image) for image in measured.images],
    }
    columns = probe_columns(queries, len(classes))
    metrics = {name: figure(None, None, None) for name in ("lp_acc1", "lp_acc5")}
    metrics |= figures(columns, {name: (5 if "acc5" in name else 1) / len(classes) for name in columns})
    if predictions is not None and features.processes.is_main:
        write_class_predictions(
            predictions,
            measured.images * len(fits),
            torch.cat([one.linear for one in fits]),
            torch.from_numpy(measured.labels).repeat(len(fits)),
            classes,
        )
    return build_result(
        "probe",
        model.name,
        {
            "name": (training if given is None else given).name,
            "images": len(measured.images),
            "classes": len(classes),
            "learned_from": training.name,
            "learned_images": fits[0].size,
            "sha256": data_hash([*measured.hashes, *learned.hashes], classes, measured.labels, learned.labels),
        },
        metrics,
        settings={
            "shots": shots,
            "lp_acc1_of_draws": [float((_ranks(one.linear, measured) <= 1).mean()) for one in fits],
            "weight_decay": [one.weight_decay for one in fits],
            "neighbours": neighbours,
            "classes": classes,
        },
        features=features.counts,
        map=map_of_classes(measured_x, [classes[label] for label in measured.labels.tolist()]),
        queries=queries,
        findings=[*training.findings, *(given.findings if given is not None else ())],
        seconds=features.seconds,
    )


def probe_columns(queries: Mapping[str, Sequence[Any]], classes: int) -> Columns:
    """Return one value per image for each metric of a linear probe.

    Args:
        queries: the part `queries` of a probe result.
        classes: number of classes.
    """
    labels = np.asarray(queries["label"])
    images = Queries(np.arange(len(labels)))
    by_class = Queries(images.clusters, strata=labels)
    linear, nearest = np.asarray(queries["lp_top1"]), np.asarray(queries["knn_top1"])
    columns = {"lp_acc1": Column(images, linear)}
    if classes >= 5:
        columns["lp_acc5"] = Column(images, np.asarray(queries["lp_top5"]))
    return columns | {
        "lp_mean_per_class_recall": Column(by_class, linear),
        "knn_acc1": Column(images, nearest),
        "knn_mean_per_class_recall": Column(by_class, nearest),
    }


def check_labelled(learned: LabeledImages, measured: LabeledImages | None) -> None:
    """Check that labeled images are suitable for a linear probe, without decoding the images.

    Args:
        learned: training images.
        measured: test images. None: they are held out from the training images.

    Raises:
        DataError: an image has several classes, or a class has too few images.
    """
    for labeled in filter(None, (learned, measured)):
        read_single_label(labeled)
    learned = learned.without_empty_classes()
    whole = LabeledPart.of(learned, learned.classes, content_hashes(learned.images))
    if measured is not None:
        LabeledPart.of(measured, learned.classes, [])
    else:
        whole = whole.take(~held_out(whole, learned.classes, seed=0))
    held_out(whole, learned.classes, seed=1)


def _ranks(scores: Float[Tensor, "N C"], measured: LabeledPart) -> NDArray[np.int64]:
    ranks: NDArray[np.int64] = true_label_ranks(scores, torch.from_numpy(measured.labels)).numpy()
    return ranks


def _share_right(scores_of_draws: list[Tensor], measured: LabeledPart, k: int) -> list[float]:
    """Return for each test image the share of draws in which its class is among the top k classes."""
    share: list[float] = np.mean([_ranks(scores, measured) <= k for scores in scores_of_draws], axis=0).tolist()
    return share


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    queries, classes = result["queries"], result["settings"]["classes"]
    images = queries["images"]
    return [
        Answers(
            "image",
            images,
            np.asarray(queries["lp_top1"], dtype=np.float64),
            are_ranks=False,
            images=images,
            right=[classes[label] for label in queries["label"]],
        )
    ]


def _run(model: DualEncoder, data: TaskData, options: Options) -> Result:
    assert data.train is not None
    return probe(model, data.train, test=data.data, **options)


TASK = Task(
    read=read_labeled,
    run=_run,
    columns=lambda result: (probe_columns(result["queries"], result["data"]["classes"]), {}),
    answers=_answers,
    texts=None,
)
