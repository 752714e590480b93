"""Linear probe and nearest neighbours on features that stay as they are."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from clipkit.data import LabeledImages, read_labeled
from clipkit.embedding.features import Cache, Features, content_hashes
from clipkit.errors import DataError
from clipkit.evaluation.figures import Column, Columns, Queries, figure, figures
from clipkit.evaluation.neighbourhood import map_of_classes
from clipkit.evaluation.predictions import write_class_predictions
from clipkit.evaluation.result import INTERVAL, Result, data_hash, versions
from clipkit.images import Stored
from clipkit.metrics import LinearClassifier, knn_scores, logistic_regression, true_label_ranks
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present

if TYPE_CHECKING:
    from clipkit.processes import Processes

# Tried from strong to weak, each beginning at the solution of the one before; then half and quarter decades around
# the best one.
_DECADES = tuple(10.0**power for power in range(2, -7, -1))
_UNLEARNED = "a class of which there are none to learn from; give training images of every class"
_HELD_OUT = 0.2  # of each class: the validation part, and the test part where no test data is given
_FEW_SHOT_VALIDATION = 4  # images a class at most (Zhou et al. 2022, CoOp)


def probe(
    model: DualEncoder,
    data: str | LabeledImages,
    *,
    test: str | LabeledImages | None = None,
    shots: int | None = None,
    seeds: int = 3,
    neighbours: int = 20,
    batch_size: int = 64,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: "Processes | None" = None,
    progress: bool = False,
) -> Result:
    """What a linear classifier and nearest neighbours make of the image features (lp_… and knn_…).

    The classifier is multinomial logistic regression. Its weight decay is chosen on a validation part of the training
    images, then it is fitted again to all of them; with `shots`, to the shots alone.

    Args:
        model: what `clipkit.load` gives.
        data: labelled images to learn from.
        test: labelled images to measure on; a fifth of each class of `data` where not given, the same whatever the
            order, equal files always on one side.
        shots: learn from so many images a class, drawn `seeds` times; figures are means over the draws.
        seeds: number of draws; without `shots` nothing is drawn and there is one.
        neighbours: k of the nearest neighbours.
        batch_size: images in one forward.
        cache: folder for features; None: the user's cache folder; False: none.
        predictions: a Parquet file to write the linear classifier's scores to, draw after draw.
        processes: share the images; all get the result, the first writes.
        progress: show bars on the terminal.

    Raises:
        DataError: the data cannot be read, has several classes an image, or has too few images.
        ModelError: a feature is not finite.

    Example:
        >>> result = probe(clipkit.load("runs/a"), "train/", test="test/", shots=16)   # doctest: +SKIP
        >>> result["metrics"]["lp_acc1"]["value"]                                      # doctest: +SKIP
        0.91
    """
    started = time.perf_counter()
    check_present(model.name, image=model.image)
    learned = _read(data)
    measured = _read(test) if test is not None else None
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    # All that can be wrong with the data is found before an image is encoded.
    whole = Labelled.of(learned, learned.classes, features.content_hashes(learned.images))
    if measured is None:
        held_out = _held_out(whole, learned.classes, seed=0)
        asked, whole = whole.part(held_out), whole.part(~held_out)
    else:
        asked = Labelled.of(measured, learned.classes, features.content_hashes(measured.images))
    if shots is None:
        kept_out = _held_out(whole, learned.classes, seed=1)
        splits = [(~kept_out, kept_out)]
    else:
        splits = [_shots(whole, shots, learned.classes, seed) for seed in range(seeds)]
    x, queries_x = features.images(whole.images, whole.hashes), features.images(asked.images, asked.hashes)
    classes = len(learned.classes)
    attempts = [
        _attempt(x, whole.labels, split, queries_x, classes, shots is None, neighbours, model.device, progress)
        for split in splits
    ]
    name, images = (learned if measured is None else measured).name, asked.images
    queries = {
        "label": asked.labels.tolist(),
        "lp_top1": _share_right([attempt.linear for attempt in attempts], asked, 1),
        "lp_top5": _share_right([attempt.linear for attempt in attempts], asked, 5),
        "knn_top1": _share_right([attempt.neighbours for attempt in attempts], asked, 1),
        "images": [str(image) for image in images],
    }
    columns = probe_columns(queries, classes)
    metrics = {name: figure(None, None, None) for name in ("lp_acc1", "lp_acc5")}
    metrics |= figures(columns, {name: (5 if "acc5" in name else 1) / classes for name in columns})
    if predictions is not None and (processes is None or processes.is_main):
        write_class_predictions(
            predictions,
            images * len(attempts),
            torch.cat([attempt.linear for attempt in attempts]),
            torch.from_numpy(asked.labels).repeat(len(attempts)),
            learned.classes,
        )
    by_seed = [float((_ranks(a.linear, asked) <= 1).mean()) for a in attempts]
    return {
        "task": "probe",
        "model": model.name,
        "data": {
            "name": name,
            "images": len(images),
            "classes": classes,
            "learned_from": learned.name,
            "learned_images": attempts[0].size,
            "sha256": data_hash([*asked.hashes, *whole.hashes], learned.classes, asked.labels, whole.labels),
        },
        "metrics": metrics,
        "settings": {
            "shots": shots,
            "lp_acc1_of_draws": by_seed,
            "weight_decay": [attempt.weight_decay for attempt in attempts],
            "neighbours": neighbours,
            "classes": learned.classes,
            **INTERVAL,
            "features": {"computed": features.computed, "from_cache": features.from_cache},
        },
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 2),
        "examples": [],
        "map": map_of_classes(queries_x, [learned.classes[label] for label in asked.labels.tolist()]),
        "queries": queries,
    }


def probe_columns(queries: Mapping[str, Sequence[Any]], classes: int) -> Columns:
    """Every figure of a probe, a row an image, from what a result holds of them."""
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
    """See that a probe of these is possible, as far as can be seen without decoding an image.

    Raises:
        DataError: it is not.
    """
    for labelled in filter(None, (learned, measured)):
        _read(labelled)
    whole = Labelled.of(learned, learned.classes, content_hashes(learned.images))
    if measured is not None:
        measured.places_among(learned.classes, _UNLEARNED)
    else:
        whole = whole.part(~_held_out(whole, learned.classes, seed=0))
    _held_out(whole, learned.classes, seed=1)


@dataclass(frozen=True)
class Labelled:
    """Images, the class of each, and the hash of its content."""

    images: list[Path | Stored]
    labels: NDArray[np.int64]
    hashes: list[bytes]

    @classmethod
    def of(cls, labelled: LabeledImages, classes: list[str], hashes: list[bytes]) -> "Labelled":
        """With labels as positions among `classes`."""
        place = labelled.places_among(classes, _UNLEARNED)
        return cls(labelled.images, place[labelled.labels], hashes)

    def part(self, rows: NDArray[np.bool_]) -> "Labelled":
        """Some of them."""
        places = rows.nonzero()[0]
        return Labelled([self.images[row] for row in places], self.labels[rows], [self.hashes[row] for row in places])


@dataclass(frozen=True)
class _Attempt:
    linear: Float[Tensor, "N C"]
    neighbours: Float[Tensor, "N C"]
    weight_decay: float
    size: int


def _attempt(
    x: Float[Tensor, "T D"],
    labels: NDArray[np.int64],
    split: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    queries: Float[Tensor, "N D"],
    classes: int,
    refit: bool,
    neighbours: int,
    device: torch.device,
    progress: bool,
) -> _Attempt:
    """Choose the weight decay on the split's second part, then fit to its first, or to all where `refit`."""
    x, y, queries = x.to(device), torch.from_numpy(labels).to(device), queries.to(device)
    learned, validation = (torch.from_numpy(rows).to(device) for rows in split)
    weight_decay = _chosen_weight_decay(x[learned], y[learned], x[validation], y[validation], classes, progress)
    if not refit:
        x, y = x[learned], y[learned]
    linear = logistic_regression(x, y, classes, weight_decay)(queries)
    votes = knn_scores(queries, x, y, classes, neighbours)
    return _Attempt(linear.cpu(), votes.cpu(), weight_decay, len(y))


def _chosen_weight_decay(
    x: Float[Tensor, "T D"],
    y: Int[Tensor, " T"],
    asked: Float[Tensor, "V D"],
    labels: Int[Tensor, " V"],
    classes: int,
    progress: bool,
) -> float:
    """The one with the most validation images right; of equal ones that of the smaller cross-entropy."""
    tried: dict[float, tuple[float, float]] = {}
    nearby: LinearClassifier | None = None
    bar = tqdm(total=len(_DECADES) + 4, desc="weight decays", disable=None if progress else True, leave=False)

    def measure(weight_decay: float) -> None:
        nonlocal nearby
        nearby = logistic_regression(x, y, classes, weight_decay, nearby)
        logits = nearby(asked)
        right = (true_label_ranks(logits, labels) == 1).double().mean().item()
        tried[weight_decay] = (right, -torch.nn.functional.cross_entropy(logits, labels).item())
        bar.update()

    with bar:
        for weight_decay in _DECADES:
            measure(weight_decay)
        for step in (10**0.5, 10**0.25):
            best = max(tried, key=tried.__getitem__)
            measure(best * step)
            measure(best / step)
    return max(tried, key=tried.__getitem__)


def _read(data: str | LabeledImages) -> LabeledImages:
    labelled = read_labeled(data) if isinstance(data, str) else data
    if labelled.several:
        raise DataError(f"{labelled.name}: has images of several classes; a probe takes one class an image")
    return labelled


def _held_out(whole: Labelled, classes: list[str], seed: int) -> NDArray[np.bool_]:
    """A fifth of each class, at least one image; equal files together, the same whatever the order."""
    class_of = {
        own: label for label, own in sorted(zip(whole.labels.tolist(), whole.hashes, strict=True), reverse=True)
    }
    out: set[bytes] = set()
    for label, name in enumerate(classes):
        contents = sorted(own for own, first in class_of.items() if first == label)
        if len(contents) < 2:
            raise DataError(
                f"class {name!r} has too few different images to hold one out ({len(contents)}); three a class are "
                "the least: to learn from, to choose the weight decay on, and to measure on, or give --test"
            )
        chosen = np.random.default_rng(seed).permutation(len(contents))[: max(1, round(_HELD_OUT * len(contents)))]
        out |= {contents[place] for place in chosen}
    return np.array([own in out for own in whole.hashes])


def _shots(whole: Labelled, shots: int, classes: list[str], seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """So many images a class to learn from, and others to choose the weight decay on."""
    drawn, kept_out = np.zeros(len(whole.labels), dtype=bool), np.zeros(len(whole.labels), dtype=bool)
    others = min(shots, _FEW_SHOT_VALIDATION)
    for label, name in enumerate(classes):
        own = sorted((whole.labels == label).nonzero()[0], key=lambda row: whole.hashes[row])
        if len(own) < shots + others:
            raise DataError(
                f"class {name!r} has {len(own)} images to learn from; {shots} shots and {others} to choose the "
                f"weight decay on need {shots + others}: give more, or fewer --shots"
            )
        order = np.random.default_rng((seed, label)).permutation(len(own))
        drawn[[own[place] for place in order[:shots]]] = True
        kept_out[[own[place] for place in order[shots : shots + others]]] = True
    return drawn, kept_out


def _ranks(scores: Float[Tensor, "N C"], asked: Labelled) -> NDArray[np.int64]:
    labels: Int[Tensor, " N"] = torch.from_numpy(asked.labels)
    ranks: NDArray[np.int64] = true_label_ranks(scores, labels).numpy()
    return ranks


def _share_right(attempts: list[Tensor], asked: Labelled, k: int) -> list[float]:
    """For each image the share of draws that have its class among the first k."""
    share: list[float] = np.mean([_ranks(scores, asked) <= k for scores in attempts], axis=0).tolist()
    return share
