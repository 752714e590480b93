"""Near misses: does the model see what differs?"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data import NearMisses, read_near_misses
from clipkit.embedding.features import Cache, Features
from clipkit.evaluation.figures import Column, Columns, Figure, Queries, figure, figures, values
from clipkit.evaluation.predictions import write_rows
from clipkit.evaluation.result import INTERVAL, Result, chosen_examples, data_hash, versions
from clipkit.metrics import selection
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present

if TYPE_CHECKING:
    from clipkit.processes import Processes

_EXAMPLES = 8
# Of random scores: both of two images choose right, both of two captions, all four.
_CHANCE = {1: {"text_acc": 1 / 2, "acc": 1 / 2}, 2: {"image_acc": 1 / 4, "text_acc": 1 / 4, "acc": 1 / 6}}


def compositional(
    model: DualEncoder,
    data: str | NearMisses,
    *,
    batch_size: int = 64,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: "Processes | None" = None,
    progress: bool = False,
) -> Result:
    """Share of near misses that are told apart, in all and by category.

    `text_acc`: the images choose their captions; `image_acc`: the captions choose their images, undefined with
    one image; `acc`: both. Definitions of CLIP_benchmark 1.6; equal scores count as the first.

    Args:
        model: what `clipkit.load` gives.
        data: a file or folder in SugarCrepe's or Winoground's form, or instances already read.
        batch_size: images in one forward.
        cache: folder for features; None: the user's cache folder; False: none.
        predictions: a Parquet file to write each instance's scores to.
        processes: share the images and captions; all get the result, the first writes.
        progress: show bars on the terminal.

    Raises:
        DataError: the data cannot be read.
        ModelError: a feature is not finite.
    """
    started = time.perf_counter()
    check_present(model.name, image=model.image, text=model.text)
    near = read_near_misses(data) if isinstance(data, str) else data
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    hashes = features.content_hashes(near.images)
    images = features.images(near.images, hashes)[torch.from_numpy(near.image_positions)]
    texts = features.texts(near.captions)[torch.from_numpy(near.caption_positions)]
    # Not a product of matrices, in which equal captions may get scores that differ in the last bit.
    scores = (images[:, :, None] * texts[:, None]).sum(dim=-1)
    text_right, image_right = selection(scores)
    queries = {
        "text_right": text_right.int().tolist(),
        "image_right": image_right.int().tolist() if scores.shape[1] > 1 else [],
        "image": near.image_positions[:, 0].tolist(),
        "category": near.categories,
        "images": [[str(near.images[image]) for image in own] for own in near.image_positions],
        "texts": [[near.captions[text] for text in own] for own in near.caption_positions],
    }
    columns = compositional_columns(queries)
    metrics: dict[str, Figure] = {"image_acc": figure(None, None, None)}
    metrics |= figures(columns, _CHANCE[scores.shape[1]])
    if predictions is not None and (processes is None or processes.is_main):
        write_rows(predictions, _prediction_rows(queries, scores))
    return {
        "task": "compositional",
        "model": model.name,
        "data": {
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
        "metrics": metrics,
        "classes": _category_rows(queries, columns),
        "settings": {
            "ties": int((scores[:, :, 0] == scores[:, :, 1]).any(dim=1).sum()),
            **INTERVAL,
            "features": {"computed": features.computed, "from_cache": features.from_cache},
        },
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 2),
        "examples": _examples(queries, scores),
        "queries": queries,
    }


def compositional_columns(queries: Mapping[str, Sequence[Any]]) -> Columns:
    """Every figure, a row an instance; instances of one image are drawn together."""
    text = np.asarray(queries["text_right"], dtype=np.float64)
    own = Queries(np.asarray(queries["image"]))
    if not queries["image_right"]:
        return {"text_acc": Column(own, text), "acc": Column(own, text)}
    image = np.asarray(queries["image_right"], dtype=np.float64)
    return {"image_acc": Column(own, image), "text_acc": Column(own, text), "acc": Column(own, text * image)}


def _category_rows(queries: Mapping[str, Sequence[Any]], columns: Columns) -> list[dict[str, Any]]:
    category = np.asarray(queries["category"])
    rows = []
    for name in dict.fromkeys(queries["category"]):
        own = category == name
        part = {metric: Column(column.queries, column.values[own]) for metric, column in columns.items()}
        rows.append({"category": name, "instances": int(own.sum())} | {m: round(v, 6) for m, v in values(part).items()})
    return rows


def _prediction_rows(queries: Mapping[str, Sequence[Any]], scores: Tensor) -> list[dict[str, Any]]:
    return [
        {"category": category, "images": images, "texts": texts, "scores": own}
        for category, images, texts, own in zip(
            queries["category"], queries["images"], queries["texts"], scores.tolist(), strict=True
        )
    ]


def _examples(queries: Mapping[str, Sequence[Any]], scores: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "query": {"image": queries["images"][k][0]},
            "answers": [
                {"text": queries["texts"][k][text], "score": round(scores[k, 0, text].item(), 4), "right": text == 0}
                for text in scores[k, 0].argsort(descending=True, stable=True).tolist()
            ],
        }
        for k in chosen_examples(_EXAMPLES, len(scores))
    ]
