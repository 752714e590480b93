"""Landmark retrieval: find easy and hard images of the query's landmark (revisited Oxford and Paris)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.landmarks import Landmarks, read_landmarks
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.evaluation.figures import Column, Columns, Queries, figures
from clipkit.evaluation.predictions import write_columns
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Task
from clipkit.metrics import similarity
from clipkit.metrics.landmarks import (
    precision_among_first,
    precision_among_first_by_chance,
    trapezoidal_precision,
    trapezoidal_precision_by_chance,
)
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes

KS = (1, 5, 10)
# Correct and ignored images of each protocol.
_PROTOCOLS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


def landmarks(
    model: DualEncoder,
    data: str | Path | Landmarks,
    *,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate landmark retrieval with the easy, medium and hard protocols of revisited Oxford and Paris.

    Each query image ranks the gallery. The data lists easy, hard and junk images for each query. The protocols differ
    in the images that are correct:

    - easy: the easy images are correct. The hard and junk images are ignored.
    - medium: the easy and hard images are correct. The junk images are ignored.
    - hard: the hard images are correct. The easy and junk images are ignored.

    An ignored image is removed from the ranking. A query without a correct image is left out of the protocol.
    `medium_map` is the mean average precision, computed with the trapezoidal rule. `medium_mp@k` is the mean precision
    among the first k images. See Radenović et al. 2018, "Revisiting Oxford and Paris", section 4.

    Args:
        model: returned by `clipkit.load`.
        data: a JSON file in the structure of `gnd_roxford5k.pkl`, or data already read.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the values of all metrics for every query.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read.
        ModelError: a feature is not finite.
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image)
    marked = data if isinstance(data, Landmarks) else read_landmarks(data)
    hashes = features.content_hashes(marked.images)
    outcomes, chance = landmark_outcomes(features.images(marked.images, hashes), marked)
    asked = marked.images[-len(marked.easy) :]
    queries: dict[str, list[Any]] = {**outcomes, "images": [str(image) for image in asked]}
    if predictions is not None and features.processes.is_main:
        write_columns(predictions, queries, "images", *outcomes)
    listed = [marked.easy, marked.hard, marked.junk]
    return build_result(
        "landmarks",
        model.name,
        {
            "name": marked.name,
            "images": len(marked.images),
            "queries": len(asked),
            "sha256": data_hash(hashes, [], [one for kind in listed for row in kind for one in (len(row), *row)]),
        },
        figures(landmark_columns(queries), {name: column.value for name, column in landmark_columns(chance).items()}),
        settings={"ks": list(KS)},
        features=features.counts,
        queries=queries,
        seconds=features.seconds,
    )


def landmark_outcomes(
    features: Float[Tensor, "N D"], data: Landmarks
) -> tuple[dict[str, list[float | None]], dict[str, list[float | None]]]:
    """Return the value and the chance level of every metric for each query.

    Both are None if the query has no correct image in the metric's protocol. Ties go to the lower position in the
    gallery.

    Args:
        features: features of `data.images`.
        data: the gallery and the queries.

    Returns:
        Two dicts with one list per metric: the values, and the chance levels.
    """
    gallery = len(data.images) - len(data.easy)
    outcomes: dict[str, list[float | None]] = {}
    chance: dict[str, list[float | None]] = {}
    for query in range(len(data.easy)):
        scores = similarity(features[gallery + query][None], features[:gallery])[0].cpu()
        order = scores.argsort(descending=True, stable=True).numpy()
        for protocol, (correct, ignored) in _PROTOCOLS.items():
            right, out = (_listed(data, kinds, query) for kinds in (correct, ignored))
            places = np.flatnonzero(np.isin(order[~np.isin(order, out)], right))
            values, expected = _values(places, gallery - len(out))
            for name in values:
                outcomes.setdefault(f"{protocol}_{name}", []).append(values[name])
                chance.setdefault(f"{protocol}_{name}", []).append(expected[name])
    return outcomes, chance


def _listed(data: Landmarks, kinds: Sequence[str], query: int) -> list[int]:
    return [position for kind in kinds for position in getattr(data, kind)[query]]


def _values(places: NDArray[np.int64], candidates: int) -> tuple[dict[str, float | None], dict[str, float | None]]:
    if not len(places):
        nothing: dict[str, float | None] = dict.fromkeys(["map", *(f"mp@{k}" for k in KS)])
        return nothing, nothing
    values: dict[str, float | None] = {"map": trapezoidal_precision(places)}
    expected: dict[str, float | None] = {"map": trapezoidal_precision_by_chance(candidates, len(places))}
    for k in KS:
        values[f"mp@{k}"] = precision_among_first(places, k)
        expected[f"mp@{k}"] = precision_among_first_by_chance(candidates, len(places), k)
    return values, expected


def landmark_columns(queries: Mapping[str, Sequence[Any]]) -> Columns:
    """Return one value per query for each metric, computed from the entry `queries` of a result."""
    columns: dict[str, Column] = {}
    for protocol in _PROTOCOLS:
        names = [name for name in queries if name.startswith(f"{protocol}_")]
        values = {name: np.asarray(queries[name], dtype=np.float64) for name in names}
        rows = np.flatnonzero(~np.isnan(values[f"{protocol}_map"]))
        if len(rows):
            asked = Queries(rows, among=len(queries[f"{protocol}_map"]))
            columns |= {name: Column(asked, value[rows]) for name, value in values.items()}
    return columns


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    queries = result["queries"]
    values = np.asarray(queries["medium_map"], dtype=np.float64)
    counted = np.flatnonzero(~np.isnan(values))
    images = [queries["images"][row] for row in counted]
    return [Answers("image", images, values[counted], are_ranks=False, images=images)]


TASK = Task(
    read=read_landmarks,
    run=lambda model, data, options: landmarks(model, data.data, **options),
    columns=lambda result: (landmark_columns(result["queries"]), {}),
    answers=_answers,
    texts=None,
)
