"""Clustering of image features by k-means, evaluated with class labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipkit.data import LabeledImages, read_labeled
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.errors import DataError
from clipkit.evaluation.figures import Columns, Means, figure
from clipkit.evaluation.predictions import write_columns
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Task
from clipkit.metrics import cluster_agreement, kmeans
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes

# Number of random starts of k-means; metrics are means over the starts.
_SEEDS = 5


def clustering(
    model: DualEncoder,
    data: object,
    *,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate clustering: how well k-means clusters of the image features agree with the classes.

    There are as many clusters as classes with images. The metrics `nmi` (equal to the V-measure), `ami` and `ari` are
    means over five random starts of k-means. MIEB computes the same metrics with one start of mini-batch k-means.

    Args:
        model: returned by `clipkit.load`.
        data: labeled images, as for `zeroshot`, with one label each.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the cluster of every image at the first start.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read, images have several labels, or all images have the same label.
        ModelError: a feature is not finite.
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image)
    labeled = data if isinstance(data, LabeledImages) else read_labeled(data)
    if labeled.several:
        raise DataError(f"{labeled.name}: has images with several labels; give one label per image")
    labels = torch.from_numpy(labeled.labels)
    classes = len(labels.unique())
    if classes < 2:
        raise DataError(f"{labeled.name}: all images have the same label; give images of several classes")
    hashes = features.content_hashes(labeled.images)
    rows = features.images(labeled.images, hashes).to(model.device)
    clusters = [kmeans(rows, classes, seed=seed).cpu() for seed in range(_SEEDS)]
    starts = [cluster_agreement(cluster, labels) for cluster in clusters]
    queries = {"label": labels.tolist(), "cluster": clusters[0].tolist(), "images": list(map(str, labeled.images))}
    if predictions is not None and features.processes.is_main:
        write_columns(predictions, queries, "images", "label", "cluster")
    return build_result(
        "clustering",
        model.name,
        {
            "name": labeled.name,
            "images": len(labeled.images),
            "classes": classes,
            "sha256": data_hash(hashes, labeled.classes, labels.tolist()),
        },
        {
            name: figure(float(np.mean([start[name] for start in starts])), None, None if name == "nmi" else 0.0)
            for name in starts[0]
        },
        settings={"clusters": classes, "starts": starts},
        features=features.counts,
        queries=queries,
        findings=labeled.findings,
        seconds=features.seconds,
    )


def _columns(result: Mapping[str, Any]) -> tuple[Columns, Means]:
    raise DataError(
        f"{result['data']['name']}: clustering metrics have no value per image, so two results cannot be "
        "compared image by image; compare the metrics of the two results directly"
    )


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    return []


TASK = Task(
    read=read_labeled,
    run=lambda model, data, options: clustering(model, data.data, **options),
    columns=_columns,
    answers=_answers,
    texts=None,
)
