"""Compositional evaluation with hard negatives.

Hard negatives are captions or images that differ in one detail (SugarCrepe, Winoground).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data import NearMisses, read_near_misses
from clipkit.data.near_miss_objects import near_misses_of
from clipkit.data.sequences import evenly_spaced
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.evaluation.examples import answer, example, top
from clipkit.evaluation.figures import Column, Columns, Figure, Queries, figure, figures, values
from clipkit.evaluation.predictions import write_rows
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Task
from clipkit.metrics import both_positives, closest_pair, selection
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes

_EXAMPLES = 8
# Chance levels by the number of images: text_acc, image_acc and acc of random scores.
_CHANCE_OF_THREE = dict.fromkeys(("text_acc", "text_only_acc", "acc"), 1 / 3)
_CHANCE = {1: {"text_acc": 1 / 2, "acc": 1 / 2}, 2: {"image_acc": 1 / 4, "text_acc": 1 / 4, "acc": 1 / 6}}


def compositional(
    model: DualEncoder,
    data: object,
    *,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate compositional understanding: how often a model recognizes hard negative captions and images.

    The metrics are shares of instances, defined as in CLIP_benchmark 1.6:

    - text_acc: for each image, the correct caption has a higher score than the incorrect caption.
    - image_acc: for each caption, the correct image has a higher score than the incorrect image. It is undefined for
      instances with one image.
    - acc: both conditions are true.

    In a tie, the first of the two captions or images is chosen.

    Instances of SugarCrepe++ have two correct captions. Then `text_acc` requires that both have higher scores than the
    incorrect caption. `text_only_acc` requires that the two correct captions are more similar to each other than to the
    incorrect caption. The result also contains the metrics of each category.

    Args:
        model: returned by `clipkit.load`.
        data: a file or folder in the format of SugarCrepe or Winoground, an object with the same columns (a list of
            dicts, a dict of columns, a DataFrame, or a dataset of the library `datasets`), or instances already read.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the scores of every instance.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read.
        ModelError: a feature is not finite.
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image, text=model.text)
    if isinstance(data, str | Path):
        near = read_near_misses(data)
    else:
        near = data if isinstance(data, NearMisses) else near_misses_of(data)
    hashes = features.content_hashes(near.images)
    images = features.images(near.images, hashes)[torch.from_numpy(near.image_positions)]
    texts = features.texts(near.captions)[torch.from_numpy(near.caption_positions)]
    # Not a matrix product, in which the scores of equal captions may differ in the last bit.
    scores = (images[:, :, None] * texts[:, None]).sum(dim=-1)
    has_two = scores.shape[2] > scores.shape[1] + 1
    text_right, image_right = (both_positives(scores[:, 0]),) * 2 if has_two else selection(scores)
    queries = {
        "text_right": text_right.int().tolist(),
        **({"text_only_right": closest_pair(*texts.unbind(dim=1)).int().tolist()} if has_two else {}),
        "image_right": image_right.int().tolist() if scores.shape[1] > 1 else [],
        "image": near.image_positions[:, 0].tolist(),
        "category": near.categories,
        "images": [[str(near.images[image]) for image in row] for row in near.image_positions],
        "texts": [[near.captions[text] for text in row] for row in near.caption_positions],
    }
    columns = compositional_columns(queries)
    metrics: dict[str, Figure] = {"image_acc": figure(None, None, None)}
    metrics |= figures(columns, _CHANCE_OF_THREE if has_two else _CHANCE[scores.shape[1]])
    if predictions is not None and features.processes.is_main:
        write_rows(predictions, _prediction_rows(queries, scores))
    return build_result(
        "compositional",
        model.name,
        {
            "name": near.name,
            "images": len(near.images),
            "captions": len(near.captions),
            "instances": len(near.categories),
            "sha256": data_hash(
                hashes,
                near.captions,
                near.image_positions.flatten().tolist(),
                near.caption_positions.flatten().tolist(),
            ),
        },
        metrics,
        classes=_category_rows(queries, columns),
        settings={"ties": int((scores[:, :, 0] == scores[:, :, 1]).any(dim=1).sum())},
        features=features.counts,
        examples=_examples(queries, scores),
        queries=queries,
        seconds=features.seconds,
    )


def compositional_columns(queries: Mapping[str, Sequence[Any]]) -> Columns:
    """Return one value per instance for each metric, computed from the part `queries` of a result.

    Bootstrap resamples draw all instances of an image together.
    """
    text = np.asarray(queries["text_right"], dtype=np.float64)
    instances = Queries(np.asarray(queries["image"]))
    if "text_only_right" in queries:
        only = Column(instances, np.asarray(queries["text_only_right"], dtype=np.float64))
        return {"text_acc": Column(instances, text), "text_only_acc": only, "acc": Column(instances, text)}
    if not queries["image_right"]:
        return {"text_acc": Column(instances, text), "acc": Column(instances, text)}
    image = np.asarray(queries["image_right"], dtype=np.float64)
    both = Column(instances, text * image)
    return {"image_acc": Column(instances, image), "text_acc": Column(instances, text), "acc": both}


def _category_rows(queries: Mapping[str, Sequence[Any]], columns: Columns) -> list[dict[str, Any]]:
    category = np.asarray(queries["category"])
    rows = []
    for name in dict.fromkeys(queries["category"]):
        mask = category == name
        part = {metric: Column(column.queries, column.values[mask]) for metric, column in columns.items()}
        metrics = {metric: round(value, 6) for metric, value in values(part).items()}
        rows.append({"category": name, "instances": int(mask.sum())} | metrics)
    return rows


def _prediction_rows(queries: Mapping[str, Sequence[Any]], scores: Tensor) -> list[dict[str, Any]]:
    return [
        {"category": category, "images": images, "texts": texts, "scores": of_instance}
        for category, images, texts, of_instance in zip(
            queries["category"], queries["images"], queries["texts"], scores.tolist(), strict=True
        )
    ]


def _examples(queries: Mapping[str, Sequence[Any]], scores: Tensor) -> list[dict[str, Any]]:
    return [
        example(
            "image",
            queries["images"][k][0],
            [answer("text", queries["texts"][k][text], scores[k, 0, text], text == 0) for text in top(scores[k, 0], 2)],
        )
        for k in evenly_spaced(len(scores), _EXAMPLES)
    ]


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    queries = result["queries"]
    return [
        Answers(
            "image",
            [" | ".join(texts) for texts in queries["texts"]],
            compositional_columns(queries)["acc"].values,
            are_ranks=False,
            images=[images[0] for images in queries["images"]],
            right=[texts[0] for texts in queries["texts"]],
        )
    ]


TASK = Task(
    read=read_near_misses,
    run=lambda model, data, options: compositional(model, data.data, **options),
    columns=lambda result: (compositional_columns(result["queries"]), {}),
    answers=_answers,
    texts=lambda data: data.data.captions,
)
