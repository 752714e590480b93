"""Instance retrieval: find the images of the same object or class among all other images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.data import LabeledImages, read_labeled
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.errors import DataError
from clipkit.evaluation.figures import Column, Columns, Queries, figures
from clipkit.evaluation.predictions import write_columns
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Task
from clipkit.metrics import precision_by_chance, similarity
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes

KS = (1, 10)
_ROWS = 1024  # number of queries whose scores are in memory at once


def instances(
    model: DualEncoder,
    data: object,
    *,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate instance retrieval: each image is a query, and the other images with the same label are correct.

    `instance_recall@k` is the share of queries with a correct image among the k most similar images (the protocol of
    Song et al. 2016 for CUB and Stanford Online Products). `instance_map@r` is the mean average precision at R, where R
    is the number of correct images (Musgrave et al. 2020, "A metric learning reality check", section 3.2). An image
    with a unique label is not a query, but it is in the gallery.

    Args:
        model: returned by `clipkit.load`.
        data: labeled images, as for `zeroshot`, with one label each.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the rank and the average precision of every query.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read, images have several labels, or no two images have the same label.
        ModelError: a feature is not finite.
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image)
    labeled = data if isinstance(data, LabeledImages) else read_labeled(data)
    if labeled.several:
        raise DataError(f"{labeled.name}: has images with several labels; give one label per image")
    counts = np.bincount(labeled.labels, minlength=len(labeled.classes))
    if counts.max() < 2:
        raise DataError(f"{labeled.name}: no two images have the same label; give several images of each object")
    hashes = features.content_hashes(labeled.images)
    labels = torch.from_numpy(labeled.labels)
    rank, precision = instance_ranks(features.images(labeled.images, hashes), labels)
    queries = {
        "rank": rank.tolist(),
        "precision": [round(value, 6) for value in precision.tolist()],
        "label": labels.tolist(),
        "images": [str(image) for image in labeled.images],
    }
    if predictions is not None and features.processes.is_main:
        write_columns(predictions, queries, "images", "rank", "precision")
    return build_result(
        "instances",
        model.name,
        {
            "name": labeled.name,
            "images": len(labeled.images),
            "classes": len(labeled.classes),
            "sha256": data_hash(hashes, labeled.classes, labels.tolist()),
        },
        figures(instance_columns(queries), _chance(counts[counts > 1], len(labels) - 1)),
        settings={"ks": list(KS)},
        features=features.counts,
        queries=queries,
        findings=labeled.findings,
        seconds=features.seconds,
    )


def instance_ranks(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return two values per query: the rank of the first correct image, and the average precision at R.

    R is the number of correct images. Ties go to the lower position. Both values are 0 for an image with a unique
    label.

    Args:
        features: features of the images.
        labels: label of each image.
    """
    ranks, precisions = [], []
    for start in range(0, len(features), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(features)))
        scores = similarity(features[rows], features).cpu()
        scores[torch.arange(len(rows)), rows] = -torch.inf
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :-1]
        right = labels[order] == labels[rows, None]
        total = right.sum(dim=1, keepdim=True)
        first = right.int().argmax(dim=1) + 1
        position = torch.arange(1, right.shape[1] + 1)
        counted = right & (position <= total)
        precision = (right.cumsum(dim=1) / position * counted).sum(dim=1) / total[:, 0].clamp(min=1)
        ranks.append(torch.where(total[:, 0] > 0, first, 0))
        precisions.append(precision)
    return torch.cat(ranks), torch.cat(precisions).double()


def instance_columns(queries: Mapping[str, Sequence[Any]]) -> Columns:
    """Return one value per query for each metric, computed from the part `queries` of a result."""
    rank = np.asarray(queries["rank"])
    asked = rank > 0
    images = Queries(np.flatnonzero(asked), among=len(rank))
    columns = {f"instance_recall@{k}": Column(images, (rank[asked] <= k).astype(np.float64)) for k in KS}
    return columns | {"instance_map@r": Column(images, np.asarray(queries["precision"], dtype=np.float64)[asked])}


def _chance(sizes: np.ndarray[Any, Any], candidates: int) -> dict[str, float]:
    """Return the expected value of each metric for random scores.

    Args:
        sizes: number of images of each label.
        candidates: number of images in the gallery of a query.
    """
    chance = {}
    for k in KS:
        missed = 0.0
        for size in sizes.tolist():
            steps = range(min(k, candidates))
            missed += size * float(
                np.prod([max(0, candidates - size + 1 - step) / (candidates - step) for step in steps])
            )
        chance[f"instance_recall@{k}"] = 1 - missed / sizes.sum()
    of_query = [size * precision_by_chance(candidates, size - 1, size - 1) for size in sizes.tolist()]
    return chance | {"instance_map@r": float(sum(of_query) / sizes.sum())}


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    queries = result["queries"]
    ranks = np.asarray(queries["rank"], dtype=np.float64)
    return [Answers("image", queries["images"], ranks, are_ranks=True, images=queries["images"])]


TASK = Task(
    read=read_labeled,
    run=lambda model, data, options: instances(model, data.data, **options),
    columns=lambda result: (instance_columns(result["queries"]), {}),
    answers=_answers,
    texts=None,
)
