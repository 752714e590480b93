"""Scores of explanations, averaged over the images of a dataset."""

import time

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from clipkit.data import Pairs, read_pairs
from clipkit.data.sequences import evenly_spaced
from clipkit.errors import DataError
from clipkit.evaluation.explanation.explain import relevance
from clipkit.evaluation.explanation.maps import Method
from clipkit.evaluation.explanation.occlusion import CELLS
from clipkit.evaluation.explanation.score import Scores, scored
from clipkit.evaluation.explanation.seen import Seen
from clipkit.evaluation.figures import Column, Figure, Queries, figures
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present


def score_explanations(
    model: DualEncoder, data: object, *, method: Method = "gradient", images: int = 100, progress: bool = False
) -> Result:
    """Measure how faithful the relevance maps of a model are, averaged over images with captions.

    Each image is explained with its first caption. The chance level of `deletion_auc` and `insertion_auc` is the value
    of random maps. `…_gain_over_random` and `…_gain_over_center` compare the maps with random maps and with a map of
    the image center. A positive gain means that the maps of the model are better.

    Args:
        model: returned by `clipkit.load`.
        data: images with captions, as for `retrieval`.
        method: method of `explain`.
        images: number of images to explain, chosen at regular intervals.
        progress: show a progress bar on the terminal.

    Raises:
        DataError: the data cannot be read, or has no captions.
        ModelError: `explain` does not support the model with this method.
    """
    started = time.perf_counter()
    check_present(model.name, image=model.image, text=model.text)
    pairs = data if isinstance(data, Pairs) else read_pairs(data)
    if not pairs.has_captions or not pairs.has_images:
        raise DataError(f"{pairs.name}: has no images with captions; give images with captions")
    chosen = evenly_spaced(len(pairs.images), images)
    captions = [pairs.captions[int(pairs.captions_of_image[position][0])] for position in chosen]
    features = model.encode_text(captions)
    rows: list[Scores] = []
    for position, text in zip(
        tqdm(chosen, "images", disable=None if progress else True, leave=False), features, strict=True
    ):
        seen = Seen.by(model, pairs.images[position])
        rows.append(scored(model, seen, text, relevance(model, seen, text[None], method)[0]))
    measured = [pairs.images[position] for position in chosen]
    return build_result(
        "explanation",
        model.name,
        {
            "name": pairs.name,
            "images": len(chosen),
            "sha256": data_hash([image.read_bytes() for image in measured], captions),
        },
        _figures(rows),
        settings={"method": method, "grid": [CELLS, CELLS], "caption": "first of each image"},
        findings=pairs.findings,
        seconds=time.perf_counter() - started,
    )


def _figures(rows: list[Scores]) -> dict[str, Figure]:
    values: dict[str, NDArray[np.float64]] = {}
    chance: dict[str, float] = {}
    for area, sign in (("deletion", -1), ("insertion", 1)):
        of_map, random, center = (
            np.array([getattr(getattr(row, name), area) for row in rows]) for name in ("map", "random", "center")
        )
        values[f"{area}_auc"] = of_map
        values[f"{area}_gain_over_random"] = sign * (of_map - random)
        values[f"{area}_gain_over_center"] = sign * (of_map - center)
        chance[f"{area}_auc"] = float(random.mean())
    of_map = np.array([row.occlusion or 0.0 for row in rows])
    values["occlusion_correlation"] = of_map
    values["occlusion_correlation_gain_over_center"] = of_map - [row.center_occlusion or 0.0 for row in rows]
    images = Queries(np.arange(len(rows)))
    return figures(
        {name: Column(images, of_each) for name, of_each in values.items()}, dict.fromkeys(values, 0.0) | chance
    )
